"""`pemt study`: the paper's open questions, one command each."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any


def sources(
    file: Path | None = None,
    *,
    counts: str | None = None,
    orders: str | None = None,
    **flags: Any,
) -> int:
    """How do score, time and memory change with the number of sources?

    Adapts to every target with the first 1, 2, 3, .. of the library's experts: ranked (by what
    they say about the training labels before training, `pemt experts rank`), in reverse and in
    random order, and with all. The reading says where returns diminish: the smallest number whose
    mean is at most one standard error below the best.

    Example: pemt study sources recipes/studies/sources.yaml --workers 2

    Without a file: pemt study sources --library experts --tasks rte,rotten_tomatoes --shots 16

    Args:
        file: YAML with a grid's keys and the study's own, see docs/studies/README.md.
        counts: numbers of sources, as "1,2,4" (default 1,2,3,5,8,12 where there are as many); all
            of them is always there.
        orders: of ranked, reverse, random (default all three).
        flags: of `run_study`.
    """
    options = {"counts": _numbers(counts, "--counts"), "orders": _words(orders)}
    return run_study("sources", file, options, **flags)


def sparsity(file: Path | None = None, *, weights: str | None = None, **flags: Any) -> int:
    """What does the Task Sparsity Loss do to the gates, and to the score?

    Adapts to every target with each weight of the loss, and shows gate entropy, effective experts
    and the largest gate beside the score. The paper's weight is 0.1; 0 switches the loss off.

    Example: pemt study sparsity recipes/studies/sparsity.yaml --workers 2

    Without a file: pemt study sparsity --library experts --tasks rte,rotten_tomatoes --shots 16

    Args:
        file: YAML with a grid's keys and the study's own, see docs/studies/README.md.
        weights: of the loss, as "0,0.1,1" (default 0,0.03,0.1,0.3,1,3).
        flags: of `run_study`.
    """
    options = {"weights": _numbers(weights, "--weights", float)}
    return run_study("sparsity", file, options, **flags)


def prompt(
    file: Path | None = None, *, ways: str | None = None, other: str | None = None, **flags: Any
) -> int:
    """How much do score and gates depend on the description that the prompt starts from?

    Adapts to every target with its description as it is, and changed: its first half, twice, its
    words shuffled, another task's description, random numbers; and with wordings of your own, which
    a file gives (wordings: {short: {rte: "..."}}). Shows how far the gates move.

    Example: pemt study prompt recipes/studies/prompt.yaml --workers 2

    Without a file: pemt study prompt --library experts --tasks rte,rotten_tomatoes --shots 16

    Args:
        file: YAML with a grid's keys and the study's own, see docs/studies/README.md.
        ways: of half, twice, shuffled, other, random (default all).
        other: the task whose description "other" takes (default question_types).
        flags: of `run_study`.
    """
    return run_study("prompt", file, {"ways": _words(ways), "other": other}, **flags)


def ablation(file: Path | None = None, *, methods: str | None = None, **flags: Any) -> int:
    """What is each part of PEMT worth?

    Adapts to every target with PEMT, and with one part at a time taken out or exchanged: mixture,
    correlation prompt, description, Task Sparsity Loss, target adapter, trained norms, gates per
    example. Shows paired differences.

    Example: pemt study ablation recipes/studies/ablation.yaml --workers 2

    Without a file: pemt study ablation --library experts --tasks rte,rotten_tomatoes --shots 16

    Args:
        file: YAML with a grid's keys and the study's own, see docs/studies/README.md.
        methods: names of `pemt bench methods` (default PEMT's ablations).
        flags: of `run_study`.
    """
    return run_study("ablation", file, {"methods": _words(methods)}, **flags)


def run_study(
    name: str,
    file: Path | None,
    options: dict[str, Any],
    *,
    library: str | None = None,
    tasks: str | None = None,
    experts: str | None = None,
    shots: str | None = None,
    data_seeds: str | None = None,
    base: str | None = None,
    method: str | None = None,
    test_rows: int | None = None,
    workers: int = 1,
    output: Path | None = None,
    data_dir: Path | None = None,
    retries: int = 1,
    draw_only: bool = False,
    json: bool = False,
) -> int:
    """Run a study's missing cells, then write its table, CSV, JSON and plot.

    Args:
        name: of the study.
        file: its YAML file.
        options: its own keys.
        library: folder with the experts, or hf://user/repo@revision.
        tasks: targets, as "rte,mrpc": names of `pemt tasks list`, or YAML files.
        experts: the sources, as "mnli,qqp" (default all of the library).
        shots: labels per class, as "16" or "4,16" or "full" (default 16).
        data_seeds: number of draws, or draws as "0,3,7" (default 3).
        base: the base the experts were trained on (default minilm).
        method: the one that is studied (default pemt; or guided).
        test_rows: score at most this many (default 250).
        workers: cells at a time, each in a process of its own.
        output: folder of the results (default: the file's output, else runs/studies/NAME).
        data_dir: local mirror of datasets (default: the file's data_dir, else PEMT_DATA_DIR).
        retries: further attempts where a worker died or an unexpected error came up.
        draw_only: run nothing; show what the cells so far say.
        json: print a summary as JSON on stdout, and plain lines of progress on stderr.
    """
    from pemt.bench.output import OutputFolder
    from pemt.bench.progress import Progress
    from pemt.studies.file import read_question
    from pemt.studies.kinds import KINDS
    from pemt.studies.running import StudyRun, found_so_far
    from pemt.studies.writing import shown, write_findings

    given = {
        **options, "libraries": None if library is None else {"experts": library},
        "tasks": _words(tasks), "experts": _words(experts), "shots": _shots(shots),
        "data_seeds": _seeds(data_seeds), "base": base, "method": method, "test_rows": test_rows,
    }  # fmt: skip
    progress = Progress(plain=json)
    failed = False
    if draw_only and output is not None:
        folder = OutputFolder(output)
        findings = found_so_far(folder, name)
    else:
        question = read_question(KINDS[name], file, given)
        run = StudyRun(
            question, output=output, data_dir=data_dir, workers=workers, retries=retries,
            progress=progress,
        )  # fmt: skip
        folder = run.folder
        if draw_only:
            findings = found_so_far(folder, name)
        else:
            findings = run.go()
            failed = bool(run.tally.failed)
    made = write_findings(findings, folder)
    if json:
        files = {what: str(path) for what, path in made.items()}
        print(json_format.dumps({"output": str(folder.root), **files, "said": shown(findings)}))
    else:
        print("\n".join(shown(findings)))
        print(f"Table, CSV, JSON and plot: {', '.join(str(p) for p in made.values())}.")
    return 1 if failed else 0


def _words(listed: str | None) -> list[str] | None:
    """Words from "a,b"."""
    return None if listed is None else [w.strip() for w in listed.split(",") if w.strip()]


def _numbers(listed: str | None, flag: str, kind: type = int) -> list[Any] | None:
    """Numbers from "1,2".

    Raises:
        ConfigError: a word that is none.
    """
    from pemt.errors import ConfigError

    try:
        return None if listed is None else [kind(word) for word in listed.split(",")]
    except ValueError:
        raise ConfigError(f"{flag} {listed}", "give numbers, as 1,2,4") from None


def _shots(listed: str | None) -> list[int | None] | None:
    if listed is None:
        return None
    words = [w.strip() for w in listed.split(",")]
    numbers = _numbers(",".join(w for w in words if w != "full") or None, "--shots") or []
    return [*numbers, *([None] if "full" in words else [])]


def _seeds(listed: str | None) -> Any:
    """A number of draws, or a list of them."""
    numbers = _numbers(listed, "--data-seeds")
    return numbers[0] if numbers and "," not in str(listed) else numbers
