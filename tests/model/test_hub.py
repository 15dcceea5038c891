"""`push_to_hub` uploads exactly what `save_pretrained` writes, through the Hub's own client."""

from __future__ import annotations

import huggingface_hub

from tests import tiny


def test_what_is_uploaded(monkeypatch):
    calls = []

    class Api:
        def create_repo(self, name, **settings):
            calls.append(("create", name, settings))

        def upload_folder(self, *, repo_id, folder_path, **settings):
            files = sorted(p.relative_to(folder_path).as_posix() for p in folder_path.rglob("*.*"))
            calls.append(("upload", repo_id, files, settings))
            return "done"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = tiny.pemt(tiny.base("bert"))
    assert model.push_to_hub("someone/adapted", base_name="someone/base", revision="v1") == "done"
    (created, name, options), (uploaded, where, files, settings) = calls
    assert (created, name, options) == ("create", "someone/adapted", {"exist_ok": True})
    assert (uploaded, where, settings) == ("upload", "someone/adapted", {"revision": "v1"})
    assert "pemt.json" in files
    assert "model.safetensors" in files
    for expert in model.expert_names:
        assert f"experts/{expert}/adapter_model.safetensors" in files
