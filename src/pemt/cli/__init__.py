"""The command line: one typed function per command; flags and help come from its signature."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import select
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pemt.errors import PemtError

SWITCHES = (
    "--json", "--instant", "--overwrite", "--drop_head", "--write", "--private", "--costs",
    "--published", "--latest", "--at_mean_gates", "--partial", "--draw_only", "--report",
    "--recorded",
)  # fmt: skip
"""Flags that may stand alone, and then mean true."""


SEVERAL = ("adapt", "train-source")
"""Commands that several processes do together, under `torchrun` or `accelerate launch`."""

PLAIN: dict[str, Callable[[str], str]] = {
    "--text": lambda said: json.dumps([said]),
    "--names": lambda said: json.dumps([name.strip() for name in said.split(",")]),
    "--learning_rates": "[{}]".format,
}
"""Flags that take a list, and how one that is not written as a list is read."""

LISTS = ("correlations",), ("bench", "table")
"""Commands that take any number of paths first, one after the other."""


def commands() -> dict[str, Any]:
    """Name -> function, or a group of them."""
    from pemt.cli.adapt import adapt
    from pemt.cli.bench import methods, run, status
    from pemt.cli.bench_table import table
    from pemt.cli.correlations import correlations
    from pemt.cli.demo import demo
    from pemt.cli.doctor import doctor
    from pemt.cli.evaluate import evaluate
    from pemt.cli.experts import list_experts, show, verify
    from pemt.cli.experts_change import add, card, remove, rename
    from pemt.cli.experts_hub import pull, push
    from pemt.cli.experts_import import import_peft
    from pemt.cli.experts_rank import rank
    from pemt.cli.fold import fold
    from pemt.cli.gates import gates
    from pemt.cli.mask import mask
    from pemt.cli.predict import predict
    from pemt.cli.prune import prune
    from pemt.cli.report import report
    from pemt.cli.study import ablation, prompt, sources, sparsity
    from pemt.cli.tasks import check, list_tasks
    from pemt.cli.tasks import show as show_task
    from pemt.cli.train_shared_prompt import train_shared_prompt
    from pemt.cli.train_source import train_source

    return {
        "demo": demo,
        "train-source": train_source,
        "train-shared-prompt": train_shared_prompt,
        "adapt": adapt,
        "evaluate": evaluate,
        "predict": predict,
        "prune": prune,
        "fold": fold,
        "report": report,
        "gates": gates,
        "mask": mask,
        "correlations": correlations,
        "experts": {
            "_help": "Keep and share a library of experts.",
            "list": list_experts,
            "show": show,
            "add": add,
            "rename": rename,
            "remove": remove,
            "verify": verify,
            "rank": rank,
            "import": import_peft,
            "card": card,
            "push": push,
            "pull": pull,
        },
        "tasks": {
            "_help": "Look at tasks, and check your own before training.",
            "list": list_tasks,
            "show": show_task,
            "check": check,
        },
        "bench": {
            "_help": "Compare methods on the same tasks, labels and seeds.",
            "run": run,
            "status": status,
            "methods": methods,
            "table": table,
        },
        "study": {
            "_help": "Answer the paper's open questions with your experts and targets.",
            "sources": sources,
            "sparsity": sparsity,
            "prompt": prompt,
            "ablation": ablation,
        },
        "doctor": doctor,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of ours are printed without a traceback.

    Returns:
        0, or what the command returned; 1 after an error, 130 after an interrupt, 141 where nobody
        reads the output any more (`pemt adapt --help | head`).
    """
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():  # another pipe, such as a worker's
            raise
        # what is left in the buffer goes nowhere, so that the interpreter's end is quiet too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _unread() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))


def _run(arguments: list[str]) -> int:
    from jsonargparse import auto_cli

    from pemt import __version__

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if arguments == ["--version"]:
        print(f"pemt {__version__}")
        return 0
    who = "pemt"
    try:
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            who = _one_of_several(arguments)
        result = auto_cli(
            _asked_for(commands(), arguments), args=_friendly(arguments) or ["--help"], prog="pemt",
            as_positional=True,
            description="Few labels, many experts: adapt a frozen base to a new task through a "
            "mixture of frozen source-task adapters (PEMT, arXiv 2402.15082).",
        )  # fmt: skip
    except PemtError as error:
        print(f"{who}: {error}", file=sys.stderr)
        return 1
    except SystemExit as ended:
        if not ended.code and {"-h", "--help"} & set(arguments):
            print(_lesson(arguments), end="")
        raise
    except KeyboardInterrupt:
        print("pemt: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return int(result or 0)


def _one_of_several(arguments: Sequence[str]) -> str:
    """Join the processes a launcher started; all but the first print nothing but errors.

    Returns:
        What errors are signed with.

    Raises:
        ConfigError: a command that is not made for several processes.
    """
    from pemt.errors import ConfigError
    from pemt.training import processes

    command = arguments[0] if arguments else "--help"
    if command not in SEVERAL:
        raise ConfigError(
            f"`pemt {command}` in {processes.launched()} processes",
            f"{' and '.join(SEVERAL)} share their work; start this without a launcher",
        )
    processes.start()
    if processes.is_main():
        return "pemt"
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to the end
    return f"pemt (process {processes.number()})"


def _asked_for(offered: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The one command that is named: reading the signatures of all takes seconds of imports."""
    first = arguments[0] if arguments else ""
    return {first: offered[first]} if first in offered else offered


def _lesson(arguments: Sequence[str]) -> str:
    """What a command's docstring says beside its first line and its flags: what for, an example."""
    component: Any = commands()
    for word in arguments:
        if not isinstance(component, dict) or word not in component:
            break
        component = component[word]
    if isinstance(component, dict):
        return ""
    body = inspect.getdoc(component) or ""
    body = body.partition("\n")[2].partition("\nArgs:")[0].strip()
    return f"\n{body}\n" if body else ""


def _friendly(arguments: Sequence[str]) -> list[str]:
    """Other spellings: `--data-dir` is `--data_dir`, a bare `--json` is `--json true`, `--text X`
    is a list of one, and `--train FILE` is the task that a command takes first.
    """
    taken: list[str] = []
    arguments = _study_file(_listed(_train_first(arguments)))
    for i, argument in enumerate(arguments):
        if taken and not argument.startswith("--"):
            argument = _as_list(taken[-1], argument)
        elif argument.startswith("--"):
            name, equals, value = argument.partition("=")
            name = name[:2] + name[2:].replace("-", "_")
            argument = name + equals + (_as_list(name, value) if equals else "")
            if argument in SWITCHES:
                following = arguments[i + 1] if i + 1 < len(arguments) else ""
                argument += "" if following in ("true", "false") else "=true"
        taken.append(argument)
    return taken


def _as_list(name: str, value: str) -> str:
    """A flag's value as the list that it takes; others are as they were."""
    if name not in PLAIN or (name != "--text" and value.startswith("[")):
        return value
    with suppress(ValueError):
        if isinstance(json.loads(value), list):  # "[laughs]" is a text
            return value
    return PLAIN[name](value)


def _study_file(arguments: Sequence[str]) -> Sequence[str]:
    """`study KIND FILE` is `study KIND --file FILE`: the file may be left out."""
    if arguments[:1] == ["study"] and len(arguments) > 2 and not arguments[2].startswith("-"):
        return [*arguments[:2], "--file", *arguments[2:]]
    return arguments


def _listed(arguments: Sequence[str]) -> Sequence[str]:
    """`correlations RUN RUN ..` as the one list that the command takes."""
    words = next((c for c in LISTS if tuple(arguments[: len(c)]) == c), None)
    if words is None or {"-h", "--help"} & set(arguments):
        return arguments
    rest = arguments[len(words) :]
    paths = list(itertools.takewhile(lambda a: not a.startswith("-"), rest))
    return [*words, json.dumps(paths), *rest[len(paths) :]]


def _train_first(arguments: Sequence[str]) -> Sequence[str]:
    """Put the file of `--train FILE` where the commands that take a task expect it."""
    place = 2 if list(arguments[:2]) == ["tasks", "check"] else 1
    if place == 1 and arguments[:1] not in (["adapt"], ["train-source"]):
        return arguments
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--train" and (equals or i + 1 < len(arguments)):
            rest = [*arguments[:i], *arguments[i + (1 if equals else 2) :]]
            return [*rest[:place], value if equals else arguments[i + 1], *rest[place:]]
    return arguments
