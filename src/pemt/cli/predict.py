"""`pemt predict`: answers for new texts."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pemt.training.settings import Answers

if TYPE_CHECKING:
    from pemt.tasks import Example, Task
    from pemt.training import Answer


def predict(
    run: str,
    *,
    text: list[str] | None = None,
    input: Path | None = None,
    output: Path | None = None,
    task_column: str = "task",
    library: str | None = None,
    base: str | None = None,
    precision: str = "auto",
    answers: Answers | None = None,
    json: bool = False,
) -> int:
    """Answer new texts with an adapted model.

    Give texts on the command line, or a CSV, TSV, JSONL or Parquet file with the columns of the
    task's template. A file of any length is answered in bounded memory, in its order.

    Several models of one base and the same experts answer a file together: name their runs with
    commas, and each row's task in a column.

    Example: pemt predict runs/product_reviews-pemt-16-0 --text '["it broke after a day"]'

    Several: pemt predict runs/reviews,spam=runs/sms_spam-pemt-16-0 --input mixed.jsonl

    Args:
        run: folder that `pemt adapt` wrote, or the model folder in it; several with commas, each
            perhaps as NAME=FOLDER (its name is the task's otherwise).
        text: one text, or a JSON list; a task with one column renders them, others take them as
            they are.
        input: a file with one row per text.
        output: write one JSON object per line here instead of to stdout; the file is there whole
            or not at all.
        task_column: with several runs: the column with the name of each row's task.
        library: folder or hf:// address of the experts, if they were not saved with the model.
        base: load the base from here instead of from where the model says.
        precision: of the frozen base: float32, bfloat16, or auto: that it was adapted in (of
            several runs the first).
        answers: rank the label words, generate, or auto; by default as the model was adapted with.
        json: print one JSON object per line instead of the answer alone.
    """
    from pemt.errors import ConfigError
    from pemt.training import predict_routed, predict_stream
    from pemt.training.deploying import load_run, load_runs

    if (text is None) == (input is None):
        raise ConfigError(
            "Nothing to answer, or two sources at once", "give either --text or --input"
        )
    runs = [one.strip() for one in run.split(",")]
    found: Iterable[Answer]
    if len(runs) > 1:
        if input is None:
            raise ConfigError(
                f"--text for {len(runs)} runs", f"give --input with a column {task_column!r}"
            )
        several = load_runs(runs, library=library, base=base, precision=precision)
        chosen = {
            name: own if answers is None else own.changed(answers=answers)
            for name, own in several.settings.items()
        }
        found = predict_routed(
            several.router, several.tasks, several.base.tokenizer,
            _routed_rows(input, several.tasks, task_column), chosen,
        )  # fmt: skip
    else:
        loaded = load_run(runs[0], library=library, base=base, precision=precision)
        settings = loaded.settings if answers is None else loaded.settings.changed(answers=answers)
        rows = _rows(input, loaded.task) if input is not None else _texts(text or [], loaded.task)
        found = predict_stream(loaded.model, loaded.task, loaded.base.tokenizer, rows, settings)
    if output is None:
        for answer in found:
            print(_line(answer) if json else answer.text, flush=True)
        return 0
    count = 0
    with _whole(output) as write, _counted() as tell:
        for count, answer in enumerate(found, start=1):  # noqa: B007 - said below
            write(_line(answer) + "\n")
            tell()
    print(f"{count} answers in {output}")
    return 0


def _texts(texts: list[str], task: Task) -> Iterator[Example]:
    from pemt.tasks import Example

    columns = list(task.columns)
    for i, text in enumerate(texts):
        rendered = task.render({columns[0]: text}) if len(columns) == 1 else text
        yield Example(str(i), rendered, None, "")


def _rows(path: Path, task: Task) -> Iterator[Example]:
    from pemt.tasks.files import at, stream_file

    for i, (line, row) in enumerate(stream_file(path)):
        yield _example(row, task, at(str(path), line), i)


def _routed_rows(path: Path, tasks: dict[str, Task], column: str) -> Iterator[tuple[str, Example]]:
    from pemt.errors import DataError
    from pemt.tasks.files import at, stream_file

    for i, (line, row) in enumerate(stream_file(path)):
        where, name = at(str(path), line), row.get(column)
        if name not in tasks:
            what = f"no column {column!r}" if column not in row else f"{column} {name!r}"
            raise DataError(f"{where}: {what}", f"name the row's task: {', '.join(tasks)}")
        yield str(name), _example(row, tasks[str(name)], where, i)


def _example(row: dict[str, Any], task: Task, where: str, number: int) -> Example:
    """A row without a label.

    Raises:
        DataError: a column that the task's template needs is not there, or nothing but blanks is.
    """
    from pemt.tasks import Example
    from pemt.tasks.rows import check_columns, rendered

    check_columns((*task.columns, *task.option_columns), row, where)
    text, options = rendered(task, row, where), task.options_of(row, where)
    return Example(str(number), text, None, "", options=options)


def _line(answer: Answer) -> str:
    entry: dict[str, Any] = {} if answer.task is None else {"task": answer.task}
    entry |= {"text": answer.example.text, "answer": answer.text}
    if isinstance(answer.value, float):  # a score, which the text rounds
        entry["value"] = answer.value
    if answer.probabilities is not None:
        entry["probabilities"] = answer.probabilities
    return json_format.dumps(entry, ensure_ascii=False)


@contextmanager
def _whole(path: Path) -> Iterator[Callable[[str], int]]:
    """Write lines to a file that is there whole, or not at all if anything goes wrong.

    Its folder is made.

    Raises:
        ConfigError: it cannot be written.
    """
    from pemt.errors import ConfigError

    if path.is_dir():
        raise ConfigError(f"{path} is a folder", "give a file, perhaps in it")
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror})", "give another file"
        ) from error
    try:
        with file:
            yield file.write
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _counted() -> Iterator[Callable[[], None]]:
    """A line on stderr that counts rows; how many there will be, a stream does not say."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,} rows"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("answering", total=None)
        yield lambda: bar.advance(task)
