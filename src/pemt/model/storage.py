"""An adapted model on disk: a folder that needs only the base to answer.

pemt.json           what it is: configuration, base, experts by name and hash, task, file hashes
                    (and the method, of a model without experts that `pemt.methods` makes again)
model.safetensors   everything that was trained
instant.safetensors the probes of an instant mixture (where there is one)
README.md           the card: what it is, for people and for the Hub
experts/NAME/       the experts, each a folder that plain PEFT loads (unless left out)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from pemt.errors import ConfigError, ExpertError
from pemt.experts import Expert, ExpertLibrary, load_expert, save_expert
from pemt.experts.card import model_card
from pemt.experts.expert import check_name
from pemt.experts.manifest import ADAPTER_CONFIG, CARD, MANIFEST, SYSTEM_FILES
from pemt.model.config import PemtConfig, from_dict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from pemt.bases import Base
    from pemt.model.adapted import AdaptedModel
    from pemt.model.pemt import PemtModel

# 2 added guides and instant mixtures, 3 methods without experts; a model that needs neither is
# still written as 1
FORMAT_VERSION = 3
CONFIG, WEIGHTS, EXPERTS = "pemt.json", "model.safetensors", "experts"
INSTANT = "instant.safetensors"
NAME_BYTES = 240  # most file systems take 255, and the new folder is prepared under a longer name
COPY_AGAIN = "copy the folder again, or adapt again"
KEYS = (
    "base", "base_fingerprint", "family", "outputs", "config", "prompt_rows", "experts", "files",
    "extra",
)  # fmt: skip


def save_model(
    model: PemtModel, folder: str | Path, *, base_name: str, include_experts: bool = True,
    extra: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write an adapted model; the folder is there whole or not at all.

    Args:
        model: stage 2, on its base.
        folder: to be made; an adapted model that is there is replaced.
        base_name: what `from_pretrained` loads the base by.
        include_experts: copy the experts in; without them `from_pretrained` needs their library.
        extra: kept under "extra", such as the task.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
    """
    loose = [e.name for e in model.experts if not e.info.content_hash]
    if loose and not include_experts:
        raise ConfigError(
            f"Expert {loose[0]!r} is in no library",
            "add it to one, or save with include_experts=True",
        )
    stated, tensors = model.beside()
    described = {
        "format_version": 1 if model.guide is None else 2,
        "config": model.pemt_config.to_dict(),
        "prompt_rows": len(model.correlation_prompt.target.embedding),
    }
    if model.guide is not None:
        described |= {"guide": model.guide, **stated}
    return _write(
        model, Path(folder), {**described, "base": base_name, "extra": extra or {}},
        beside=tensors, experts=model.experts, include_experts=include_experts,
    )  # fmt: skip


def save_rebuilt(
    model: AdaptedModel, folder: str | Path, *, method: str, config: PemtConfig, init_seed: int,
    base_name: str, extra: dict[str, Any],
) -> Path:  # fmt: skip
    """Write a model without experts that its method makes again from base, task and options.

    Args:
        model: on its base.
        folder: as in `save_model`.
        method: a name in `pemt.methods.METHODS`, one that is `rebuilt`.
        config: what it was built with.
        init_seed: of new weights: some methods keep what never trains.
        base_name: what the base is loaded by.
        extra: kept under "extra"; the task must be there.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
    """
    described = {
        "format_version": 3, "method": method, "config": config.to_dict(), "prompt_rows": 0,
        "init_seed": init_seed, "base": base_name, "extra": extra,
    }  # fmt: skip
    return _write(model, Path(folder), described)


def _write(
    model: AdaptedModel, folder: Path, described: dict[str, Any], *,
    beside: dict[str, Tensor] | None = None, experts: Sequence[Expert] = (),
    include_experts: bool = True,
) -> Path:  # fmt: skip
    """The folder, with what is said of every model added to the description."""
    check_place(folder)
    with writing_to(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            save_file(
                {k: v.cpu().contiguous() for k, v in model.trained_state().items()}, fresh / WEIGHTS
            )
            listed = []
            for expert in experts:
                saved = expert.info
                if include_experts:
                    saved = save_expert(_as_named(expert), fresh / EXPERTS / expert.name)
                listed.append({"name": expert.name, "content_hash": saved.content_hash})
            files = [WEIGHTS]
            if beside:
                save_file(beside, fresh / INSTANT)
                files.append(INSTANT)
            said = {
                **described,
                "base_fingerprint": model.base_fingerprint(),
                "family": model.family,
                "outputs": model.outputs,
                "experts": listed,
                "files": {name: _sha256(fresh / name) for name in files},
            }
            text = json.dumps(said, indent=1, ensure_ascii=False) + "\n"
            (fresh / CONFIG).write_text(text, encoding="utf-8")
            (fresh / CARD).write_text(model_card(said, folder=folder.name), encoding="utf-8")
            fresh.chmod(0o755)
            _swap(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _swap(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`; if that fails, what was there stays."""
    if not folder.exists():
        fresh.replace(folder)
        return
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-old-"))
    try:
        folder.replace(aside / "model")
        try:
            fresh.replace(folder)
        except BaseException:
            (aside / "model").replace(folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Refuse a place where an adapted model cannot go, or would take something else's place.

    Raises:
        ConfigError: a file, the current folder, a name too long, or a folder that holds anything
            but an adapted model.
    """
    with writing_to(folder):
        length = len(os.fsencode(folder.name))
        if length > NAME_BYTES:
            raise ConfigError(
                f"The name of {folder} has {length} bytes", f"give one of at most {NAME_BYTES}"
            )
        for place in (folder, *folder.parents):
            if place.exists() or place.is_symlink():
                if not place.is_dir():
                    raise ConfigError(
                        f"{folder} cannot be a folder: {place} is a file or a broken link",
                        "give a folder to save the model in",
                    )
                break
        if not folder.exists():
            return
        here = Path.cwd()
        if any(folder.samefile(place) for place in (here, *here.parents)):
            raise ConfigError(
                f"{str(folder)!r} is the current folder or above it, which cannot be replaced",
                f"name a folder inside it, such as {str(folder / 'model')!r}",
            )
        if any(folder.iterdir()) and not (folder / CONFIG).is_file():
            raise ConfigError(
                f"{folder} is not empty and holds no adapted model", "give another folder"
            )
        others = _others(folder)
        if others:
            more = f" and {len(others) - 5} more" if len(others) > 5 else ""
            raise ConfigError(
                f"{folder} also holds {', '.join(others[:5])}{more}, which saving would delete",
                "move them elsewhere, or give another folder",
            )


def _others(folder: Path) -> list[str]:
    """The files in a model's folder that pemt does not write; hidden ones are tools' own."""
    found = []
    for path in sorted(folder.rglob("*")):
        *parents, name = path.relative_to(folder).parts
        if any(part.startswith(".") for part in (*parents, name)) or name in SYSTEM_FILES:
            continue
        if path.is_dir() and not path.is_symlink():
            continue
        ours = name == CARD or name.endswith(".safetensors")
        if not parents:
            ours = ours or name == CONFIG
        else:
            inside = len(parents) == 2 and parents[0] == EXPERTS
            ours = inside and (ours or name in (ADAPTER_CONFIG, MANIFEST))
        if not ours:
            found.append("/".join((*parents, name)))
    return found


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """What the system says about a place, as an error that names it.

    Raises:
        ConfigError: instead of any OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror or error}",
            "give a folder that you may write to, on a disk with room for it",
        ) from error


def _as_named(expert: Expert) -> Expert:
    return replace(expert, info=replace(expert.info, name=expert.name))


def read_description(folder: str | Path) -> dict[str, Any]:
    """What `pemt.json` says.

    Raises:
        ConfigError: no adapted model there, not readable, or of a newer format.
    """
    path = Path(folder) / CONFIG
    _refuse_link(path)
    if not path.is_file():
        raise ConfigError(f"No adapted model in {folder}", f"expected a file {CONFIG} there")
    try:
        described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}", "adapt again") from None
    if not isinstance(described, dict):
        raise ConfigError(f"{path} holds no description", COPY_AGAIN)
    version = described.get("format_version")
    if version not in range(1, FORMAT_VERSION + 1):
        raise ConfigError(
            f"{path} has format version {version}",
            f"this version of pemt reads 1 to {FORMAT_VERSION}",
        )
    missing = [key for key in KEYS if key not in described]
    if missing:
        raise ConfigError(f"{path} lacks {missing[0]!r}", COPY_AGAIN)
    _check_experts(path, described["experts"])
    return described


def _check_experts(path: Path, experts: Any) -> None:
    """Refuse experts that are not told by name and hash: a name may not lead out of the folder."""
    if not isinstance(experts, list) or not all(
        isinstance(entry, dict) and {"name", "content_hash"} <= set(entry) for entry in experts
    ):
        raise ConfigError(f"{path} lists no experts by name and content_hash", COPY_AGAIN)
    for entry in experts:
        try:
            check_name(entry["name"] if isinstance(entry["name"], str) else "")
        except ConfigError as error:
            raise ConfigError(
                f"{path} lists {entry['name']!r}, which cannot be an expert's name.", COPY_AGAIN
            ) from error


def _refuse_link(path: Path) -> None:
    """A link leads out of the folder, where nothing is the model's own."""
    if path.is_symlink():
        raise ConfigError(f"{path} is a symbolic link", "copy the file or folder itself")


def load_model(
    folder: str | Path, *, base: Base | None = None, library: ExpertLibrary | None = None,
    precision: Any = "float32", device: str | None = None,
) -> tuple[PemtModel, Base, dict[str, Any]]:  # fmt: skip
    """Read an adapted model: files are verified, experts must be those it was made with.

    Args:
        folder: that `save_model` wrote.
        base: a loaded base; by default the saved one is loaded.
        library: where the experts are, if they were not saved with the model.
        precision: of the base, if it is loaded here.
        device: where to put the base, if it is loaded here.

    Returns:
        The model in evaluation mode, the base and the whole description.

    Raises:
        ConfigError: a missing, altered or linked file, or a setting this version does not know.
        ExpertError: an expert that is missing, renamed or altered, or another base.
    """
    from pemt.bases import load_base
    from pemt.model.pemt import PemtModel

    folder = Path(folder)
    described = read_description(folder)
    if "method" in described:
        raise ConfigError(
            f"{folder} holds a model of the method {described['method']!r}, without experts",
            "read it with pemt.training.load_run, or answer with pemt predict",
        )
    verify_files(folder, described)
    _refuse_link(folder / EXPERTS)
    experts = []
    for entry in described["experts"]:
        inside = folder / EXPERTS / entry["name"]
        if inside.is_dir() or inside.is_symlink():  # which `load_expert` refuses
            expert = load_expert(inside)
        elif library is not None:
            expert = library.load(entry["name"])
        else:
            raise ExpertError(
                f"Expert {entry['name']!r} is not in {folder / EXPERTS}",
                "pass the library it is in",
            )
        if expert.info.content_hash != entry["content_hash"]:
            raise ExpertError(
                f"Expert {entry['name']!r} is not the one this model was adapted with",
                "use the library as it was, or adapt again",
            )
        experts.append(expert)
    base = base or load_base(described["base"], precision=precision, device=device)
    rows, width = described["prompt_rows"], base.model.get_input_embeddings().weight.shape[1]
    kind: type[PemtModel] = PemtModel
    beside: dict[str, Any] = {}
    if "instant" in described:
        from pemt.guide.instant import InstantModel, from_saved

        kind = InstantModel
        numbers = load_file(folder / INSTANT) if (folder / INSTANT).is_file() else {}
        beside = from_saved(described["instant"], numbers, experts, base)
    model = kind(
        base.model,
        experts,
        from_dict(PemtConfig, described["config"]),
        prompt=torch.zeros(rows, width),
        outputs=described["outputs"],
        backbone=base.backbone,
        guide=described.get("guide"),
        **beside,
    )
    fill(model, folder, described, base)
    return model, base, described


def fill(model: AdaptedModel, folder: Path, described: dict[str, Any], base: Base) -> None:
    """Load what was trained into a model that was built again; it is then ready to answer.

    Raises:
        ExpertError: another base; the model is taken off it again.
        ConfigError: parameters that do not fit.
    """
    try:
        if model.base_fingerprint() != described["base_fingerprint"]:
            raise ExpertError(
                f"The base {base.name!r} is not the one this model was adapted on",
                f"load {described['base']!r} as it was",
            )
        model.load_trained_state(load_file(folder / WEIGHTS))
    except Exception:
        model.detach()
        raise
    model.eval()


def verify_files(folder: Path, described: dict[str, Any]) -> None:
    """Compare the files with their hashes; all that are read from are among them.

    Raises:
        ConfigError: a missing, altered, unrecorded or linked one.
    """
    recorded = described["files"]
    allowed = {WEIGHTS, INSTANT} if "instant" in described else {WEIGHTS}
    if not isinstance(recorded, dict) or not {WEIGHTS} <= set(recorded) <= allowed:
        names = sorted(recorded) if isinstance(recorded, dict) else recorded
        raise ConfigError(
            f"{folder / CONFIG} lists {names!r} as its files, not {sorted(allowed)}", COPY_AGAIN
        )
    # without numbers there is no instant file; one that is there is read
    if "instant" in described and INSTANT not in recorded and (folder / INSTANT).exists():
        raise ConfigError(f"{folder / INSTANT} is not recorded in {CONFIG}", COPY_AGAIN)
    for name, wanted in recorded.items():
        _refuse_link(folder / name)
        if not (folder / name).is_file() or _sha256(folder / name) != wanted:
            raise ConfigError(f"{folder / name} is missing or altered", COPY_AGAIN)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
