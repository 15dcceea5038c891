"""What several commands ask for in the same way: a task by name, file or flags, a run's folder.

A command passes its `**flags` on to `task_from`; the command line then shows `task_from`'s flags as
the command's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pemt.errors import ConfigError

if TYPE_CHECKING:
    from pemt.tasks import Task


def task_from(
    task: str,
    *,
    text_template: str | None = None,
    label_column: str | None = None,
    description: str | None = None,
    labels: str | None = None,
    kind: str | None = None,
    metrics: str | None = None,
    task_name: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
) -> Task:
    """A task of the registry, of a YAML file, or of a data file and flags.

    Args:
        task: a name of the registry, a YAML file, or a CSV, TSV, JSONL or Parquet file.
        text_template: with a data file: the source text, column names in braces, such as
            "question: {question}".
        label_column: with a data file: the column with the answers.
        description: with a data file: one sentence, "Given INPUT, the task is to GOAL."
        labels: with a data file: label words separated by commas; by default the values of the
            label column, sorted.
        kind: with a data file: classification, regression or generation, where the answers leave
            it in doubt.
        metrics: with a data file: what to report, separated by commas, the main one first.
        task_name: with a data file: the task's name; by default the file's.
        validation_file: with a data file: rows to select on; by default a tenth of the rows.
        test_file: with a data file: rows to score; by default a fifth of the rows, or half of the
            validation file where there is one.

    Raises:
        ConfigError: flags that are missing, or that go with nothing.
        UnknownNameError: no such task.
    """
    from pemt.tasks import Task
    from pemt.tasks.adhoc import is_data_file, task_from_files

    needed = {
        "--text-template": text_template,
        "--label-column": label_column,
        "--description": description,
    }
    others = {
        "--labels": labels, "--kind": kind, "--metrics": metrics, "--task-name": task_name,
        "--validation-file": validation_file, "--test-file": test_file,
    }  # fmt: skip
    if is_data_file(task):
        if text_template is None or label_column is None or description is None:
            missing = [flag for flag, value in needed.items() if value is None]
            raise ConfigError(
                f"{task} is a data file, and {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not given",
                'say how to read it: --text-template "question: {question}" --label-column answer '
                "--description \"Given a question after 'question:', the task is to ...\"; or give "
                "a YAML file",
            )
        return task_from_files(
            train=task, validation=validation_file, test=test_file, text_template=text_template,
            label_column=label_column, description=description, name=task_name,
            labels=_words(labels), kind=kind, metrics=_words(metrics),
        )  # fmt: skip
    given = [flag for flag, value in {**needed, **others}.items() if value is not None]
    if given:
        raise ConfigError(
            f"{given[0]} goes with a data file, and the task {task!r} is none",
            "give a .csv, .tsv, .jsonl or .parquet file as the task (or with --train), or leave "
            f"{', '.join(given)} out",
        )
    if task.endswith((".yaml", ".yml")):
        return Task.from_file(task)
    return Task.named(task)


def task_named(task: str) -> Task:
    """A task of the registry or of a YAML file, for commands without the flags of a data file.

    Raises:
        ConfigError: a data file.
        UnknownNameError: no such task.
    """
    from pemt.tasks.adhoc import is_data_file

    if is_data_file(task):
        raise ConfigError(
            f"{task} is a data file, and this command takes a task",
            "write a YAML file that says how to read it (docs/how-to/own-task.md), and give that",
        )
    return task_from(task)


def _words(listed: str | None) -> list[str] | None:
    """Words from "a, b", or from a JSON list where a word holds a comma.

    Raises:
        ConfigError: brackets without a list of strings inside.
    """
    import json

    if listed is None or not listed.strip().startswith("["):
        return listed and [word.strip() for word in listed.split(",")]  # type: ignore[return-value]
    try:
        words = json.loads(listed)
    except json.JSONDecodeError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{listed} is no list of words", """write a,b or '["a", "b"]'""")
    return words


def source_run(name: str, library: str, base: str) -> str:
    """The name of a source run below `runs`: what else goes under that name has another.

    Args:
        name: of the run: its task or expert.
        library: folder that the expert goes to.
        base: its name, folder or Hub id.
    """
    return "-".join((name, *(Path(path).expanduser().resolve().name for path in (library, base))))


@contextmanager
def run_folder(
    folder: Path | None, default: str, *, overwrite: bool, reads: Iterable[str | Path | None] = ()
) -> Iterator[Path]:
    """Where a run goes; a finished run there is only replaced when asked.

    It is set aside until the new one is whole, and comes back where an error leaves nothing of the
    new one.

    Args:
        folder: asked for; None takes the default.
        default: name below `runs`.
        overwrite: replace a finished run.
        reads: what the command reads, names that are no paths among them.

    Raises:
        ConfigError: a finished run is there, or one whose folder holds what the command reads.
    """
    from pemt.training import processes

    place = folder or Path("runs") / default
    real = place.resolve()
    aside = real.with_name(f".{real.name}.replaced")

    def set_aside() -> None:
        if not (place / "results.json").is_file():
            return
        if not overwrite:
            raise ConfigError(
                f"{place} holds a finished run", "give another --output, or --overwrite true"
            )
        inputs = [Path(path).expanduser().resolve() for path in reads if path]
        for inside in (Path.cwd(), *(path for path in inputs if path.exists())):
            if inside.is_relative_to(real):
                raise ConfigError(
                    f"{place} is to be replaced and holds {inside}, which this command needs",
                    "give another --output, or move it",
                )
        if aside.exists():  # of a run that was killed at its very end
            shutil.rmtree(aside)
        real.rename(aside)
        if place.is_symlink():
            real.mkdir()

    processes.on_main(set_aside)
    try:
        yield place
    except BaseException:
        if processes.is_main() and aside.exists() and not (real.exists() and any(real.iterdir())):
            if real.exists():
                real.rmdir()
            aside.rename(real)
        raise
    if processes.is_main() and aside.exists():
        shutil.rmtree(aside)
