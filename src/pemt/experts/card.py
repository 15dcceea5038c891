"""Cards: the README.md of an expert, a library and an adapted model, from what is recorded.

The front matter is what the Hub reads; the text is what people read. Every value that somebody
wrote is escaped, so that a description can neither end the front matter nor bring HTML along.
Only what was measured is reported, with the number of rows and of runs behind it.
"""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pemt.experts.address import HubAddress, is_hub_address
from pemt.experts.expert import ExpertInfo

if TYPE_CHECKING:
    import jinja2

    from pemt.tasks import Task

MARK = "<!-- This card was written by pemt. Remove this line to keep your own changes. -->"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MARKUP = re.compile(r"([\\`*_\[\]|~$])")
_BREAKS = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\s]+")
_LICENCES = {
    "MIT": "mit", "Apache-2.0": "apache-2.0", "Apache 2.0": "apache-2.0",
    "CC BY 4.0": "cc-by-4.0", "CC BY-SA 4.0": "cc-by-sa-4.0", "CC BY-SA 3.0": "cc-by-sa-3.0",
}  # fmt: skip
_PIPELINES = {
    "classification": "text-classification", "regression": "text-classification",
    "generation": "text-generation",
}  # fmt: skip
_COUNTS = ("n", "rows", "count")
_SPREADS = ("deviation", "std", "sd")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measured number.

    Args:
        split: what it was measured on, such as "test".
        name: of the metric.
        value: mean over the runs.
        n: rows it was measured on; None where not recorded.
        deviation: standard deviation over runs; None after one run.
        runs: how many.
        interval: 95 % interval over the rows of one run; None where not recorded.
    """

    split: str
    name: str
    value: float
    n: int | None = None
    deviation: float | None = None
    runs: int = 1
    interval: tuple[float, float] | None = None

    @property
    def basis(self) -> str:
        """The number of rows and runs behind the value, and how sure it is."""
        rows = "n not recorded" if self.n is None else f"n = {self.n}"
        if self.deviation is None:
            if self.interval is None:
                return f"{rows}, one run"
            low, high = self.interval
            return f"{rows}, one run, 95 % interval over rows {low:.4f} to {high:.4f}"
        return f"{rows}, ± {self.deviation:.4f} over {self.runs} runs"


def measures(metrics: Mapping[str, Any], split: str = "") -> list[Measure]:
    """Every number in recorded metrics, flat or by split; what is not a number is left out.

    An entry "interval" is no split: it holds the interval of the metric that it names.
    """
    found = []
    sure = _mapping(metrics.get("interval"))
    ends = tuple(float(sure[end]) for end in ("low", "high") if _is_number(sure.get(end)))
    n = next((int(metrics[c]) for c in _COUNTS if _is_number(metrics.get(c))), None)
    for name, value in metrics.items():
        if _is_number(value) and name not in _COUNTS:
            single = name == "validation" and not split
            found.append(
                Measure(
                    split="validation" if single else split or "as recorded",
                    name="main metric" if single else name,
                    value=float(value),
                    n=None if single else n,
                    interval=(ends[0], ends[1])
                    if len(ends) == 2 and name == sure.get("metric") else None,
                )
            )  # fmt: skip
        elif isinstance(value, Mapping) and _is_number(value.get("mean")):
            spread = next((float(value[s]) for s in _SPREADS if _is_number(value.get(s))), None)
            runs = int(value["runs"]) if _is_number(value.get("runs")) else 1
            found.append(
                Measure(
                    split=split or "as recorded", name=name, value=float(value["mean"]), n=n,
                    deviation=spread if runs > 1 else None, runs=runs,
                )
            )  # fmt: skip
        elif isinstance(value, Mapping) and name != "interval":
            found += measures(value, split=name)
    return found


def expert_card(info: ExpertInfo, *, where: str | None = None, licence: str | None = None) -> str:
    """The card of one expert.

    Args:
        info: its provenance.
        where: address of its library, such as "hf://user/repo"; by default the card explains how to
            load the expert from the folder above the one it lies in.
        licence: of the weights, as the Hub names it; "unknown" by default, for nobody recorded it.

    Returns:
        Markdown with front matter.
    """
    measured = measures(info.metrics)
    task = _task(info.task)
    front = {
        **_common([info], licence),
        "library_name": "peft",
        "tags": ["pemt", "expert", info.kind, f"task:{info.task}"],
        **_datasets([task]),
        "model-index": _model_index(info.name, info.task, task, measured),
    }
    return _render(
        "expert.md.j2", front, info=info, measured=measured, task=task, where=where,
        hub=HubAddress.parse(where) if where and is_hub_address(where) else None,
    )  # fmt: skip


def library_card(
    infos: Sequence[ExpertInfo], *, where: str | None = None, licence: str | None = None
) -> str:
    """The card of a library: one row per expert.

    Args:
        infos: of its experts.
        where: its address; by default ".", the folder the card lies in.
        licence: as in `expert_card`.
    """
    tasks = [_task(name) for name in sorted({info.task for info in infos})]
    front = {
        **_common(infos, licence),
        "library_name": "peft",
        "tags": ["pemt", "expert-library"],
        **_datasets(tasks),
    }
    ordered = sorted(infos, key=lambda info: info.name)
    measured = {info.name: measures(info.metrics) for info in ordered}
    return _render("library.md.j2", front, infos=ordered, measured=measured, where=where or ".")


def model_card(described: Mapping[str, Any], *, folder: str = "model") -> str:
    """The card of an adapted model.

    Args:
        described: the content of its `pemt.json`.
        folder: its folder's name.
    """
    extra = _mapping(described.get("extra"))
    unknown = dict.fromkeys(("name", "version", "description", "licence", "citation"), "")
    saved = {**unknown, "labels": (), **_mapping(extra.get("task"))}
    name = str(saved["name"])
    task = _task(name)
    measured = measures(
        {"test": {**_mapping(extra.get("metrics")), "interval": extra.get("interval")}}
    )
    settings, method = _mapping(extra.get("settings")), described.get("method")
    front: dict[str, Any] = {
        "license": "unknown",
        **({"base_model": described["base"]} if _HUB_ID.fullmatch(str(described["base"])) else {}),
        "library_name": "pemt",
        "tags": ["pemt", "few-shot", *([] if method else ["mixture-of-experts"])],
        **_datasets([task]),
    }
    if saved.get("kind") in _PIPELINES:
        front["pipeline_tag"] = _PIPELINES[saved["kind"]]
    if measured:
        front["model-index"] = _model_index(folder, name or "unknown", task, measured)
    return _render(
        "model.md.j2", front, described=described, saved=saved, measured=measured, folder=folder,
        settings=settings, task=task, guide=_mapping(described.get("guide")),
        instant=_mapping(described.get("instant")), method=method,
    )  # fmt: skip


def folded_card(said: Mapping[str, Any], *, folder: str) -> str:
    """The card of a folded model.

    Args:
        said: the content of its `fold.json`.
        folder: its folder's name.
    """
    from pemt.assets import OFFLINE_BASES

    known = {"task": "", "scores": None, "lora_adapter": False, **said}
    base = str(said["base"])
    front: dict[str, Any] = {
        "license": "unknown",
        **({"base_model": base} if _HUB_ID.fullmatch(base) else {}),
        "library_name": "peft",
        "tags": ["pemt", "lora", *(["folded-mixture"] if said["prompt_rows"] else [])],
    }
    return _render(
        "folded.md.j2", front, said=known, folder=folder, offline=base in OFFLINE_BASES
    )  # fmt: skip


def text(value: Any) -> str:
    """A value as part of a line of plain Markdown: no markup, no HTML, no line break.

    It must not begin the line, where a digit and a dot would begin a list.
    """
    line = _BREAKS.sub(" ", str(value)).strip()
    return _MARKUP.sub(r"\\\1", html.escape(line, quote=False))


def code(value: Any) -> str:
    """A value as a code span, a hash usually: it can end neither the span nor a table's cell."""
    line = _BREAKS.sub(" ", str(value)).strip()
    return "`" + re.sub(r"[`|<>&]", "?", line) + "`"


def _render(template: str, front: Mapping[str, Any], **values: Any) -> str:
    import yaml

    matter = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=False, width=90)
    body = _templates().get_template(template).render(mark=MARK, **values)
    return f"---\n{matter}---\n{body.rstrip()}\n"


@functools.cache
def _templates() -> jinja2.Environment:
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("pemt.experts", "cards"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # it is Markdown: every free text goes through `text` or `code`
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["text"] = text
    templates.filters["code"] = code
    templates.filters["python"] = repr
    templates.filters["settings"] = lambda value: text(json.dumps(value, ensure_ascii=False))
    return templates


def _common(infos: Sequence[ExpertInfo], licence: str | None) -> dict[str, Any]:
    bases = sorted({info.base for info in infos if _HUB_ID.fullmatch(info.base)})
    front: dict[str, Any] = {"license": licence or "unknown"}
    if bases:
        front["base_model"] = bases[0] if len(bases) == 1 else bases
    return front


def _datasets(tasks: Iterable[Task | None]) -> dict[str, Any]:
    hubs = [task.rows.hub.path for task in tasks if task is not None and task.rows.hub is not None]
    return {"datasets": sorted(set(hubs))} if hubs else {}


def _model_index(
    name: str, task_name: str, task: Task | None, measured: Sequence[Measure]
) -> list[dict[str, Any]]:
    """What the Hub shows as results; only what was measured on test rows."""
    hub = None if task is None else task.rows.hub
    dataset = {"name": task_name, "type": task_name if hub is None else hub.path}
    if hub is not None and hub.name:
        dataset["config"] = hub.name
    kind = "classification" if task is None else task.kind
    tested = [m for m in measured if m.split in ("test", "as recorded") and m.name != "loss"]
    result = {
        "task": {"type": _PIPELINES[kind]},
        "dataset": {**dataset, **({"split": "test"} if tested else {})},
        "metrics": [
            {"type": m.name, "value": m.value, "name": f"{m.name} ({m.basis})"} for m in tested
        ],
    }
    return [{"name": name, "results": [result] if tested else []}]


def _task(name: str) -> Task | None:
    """The registry's task of this name, for its data, licence and citation."""
    from pemt.errors import PemtError
    from pemt.tasks import Task

    try:
        return Task.named(name)
    except PemtError:
        return None  # a task of the user's own


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
