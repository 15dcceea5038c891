"""`pemt predict`: answers for new texts."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Any

from pemt.training.settings import Answers


def predict(
    run: Path,
    *,
    text: list[str] | None = None,
    input: Path | None = None,
    output: Path | None = None,
    library: str | None = None,
    base: str | None = None,
    precision: str = "auto",
    answers: Answers | None = None,
    json: bool = False,
) -> int:
    """Answer new texts with an adapted model.

    Give texts on the command line, or a CSV, TSV or JSONL file with the columns of the task's
    template.

    Example: pemt predict runs/product_reviews-pemt-16-0 --text '["it broke after a day"]'

    Args:
        run: folder that `pemt adapt` wrote, or the model folder in it.
        text: texts; a task with one column renders them, others take them as they are.
        input: a file with one row per text.
        output: write one JSON object per line here instead of to stdout.
        library: folder or hf:// address of the experts, if they were not saved with the model.
        base: load the base from here instead of from where the model says.
        precision: of the frozen base: auto, float32 or bfloat16.
        answers: rank the label words, generate, or auto; by default as the model was adapted with.
        json: print one JSON object per line instead of the answer alone.
    """
    from pemt.errors import ConfigError, DataError
    from pemt.tasks import Example
    from pemt.tasks.files import read_file
    from pemt.training import predict as answer
    from pemt.training.deploying import load_run

    if (text is None) == (input is None):
        raise ConfigError(
            "Nothing to answer, or two sources at once", "give either --text or --input"
        )
    loaded = load_run(run, library=library, base=base, precision=precision)
    task = loaded.task
    examples: list[Example] = []
    if input is not None:
        needed = (*task.columns, *task.option_columns)
        for line, row in read_file(input):
            where = f"{input}:{line}"
            missing = [c for c in needed if c not in row]
            if missing:
                raise DataError(
                    f"{where}: no column {missing[0]!r}",
                    f"the task needs {', '.join(needed)}; this row has {', '.join(row)}",
                )
            number, options = str(len(examples)), task.options_of(row, where)
            examples.append(Example(number, task.render(row), None, "", options=options))
    else:
        columns = list(task.columns)
        rendered = [task.render({columns[0]: t}) if len(columns) == 1 else t for t in text or []]
        examples = [Example(str(i), t, None, "") for i, t in enumerate(rendered)]
    settings = loaded.settings if answers is None else loaded.settings.changed(answers=answers)
    made = answer(
        loaded.model, task, loaded.base.tokenizer, examples, settings,
        progress=output is not None,
    )  # fmt: skip
    lines = []
    for i, (example, said) in enumerate(zip(examples, made.texts, strict=True)):
        entry: dict[str, Any] = {"text": example.text, "answer": said}
        if made.log_probabilities is not None:
            words = example.options or task.labels
            chances = made.log_probabilities[i].softmax(-1)[: len(words)].tolist()
            entry["probabilities"] = dict(zip(words, chances, strict=True))
        lines.append(json_format.dumps(entry, ensure_ascii=False) if json or output else said)
    if output is not None:
        temporary = output.with_name(f".{output.name}.part")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(output)
        print(f"{len(lines)} answers in {output}")
        return 0
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
