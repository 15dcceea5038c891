"""What happens to a row's columns before the template reads them."""

from __future__ import annotations

import pytest

from pemt.errors import DataError, UnknownNameError
from pemt.tasks.shaping import CLEANERS, Mark, check_cleaners, shape

NOUN = Mark(column="text", index="at", span="noun", sign="*")
PRONOUN = Mark(column="text", index="at2", span="pronoun", sign="#")
ROW = {"text": "The tall man said he left", "at": 0, "noun": "The tall man", "at2": 4,
       "pronoun": "he"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "cleaned"),
    [
        ("html", "<b>Sent 1: </b>one<br/>two", "Sent 1: one two"),
        ("html", "a < b and c > d", "a < b and c > d"),
        ("highlights", "It ended.\n@highlight\nOne\n@highlight\nTwo", "It ended. One. Two"),
        ("spaces", "a\n b\t c", "a b c"),
    ],
)
def test_cleaners(name, text, cleaned):
    assert CLEANERS[name](text) == cleaned


def test_an_unknown_cleaner_is_named_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="html"):
        check_cleaners({"text": "htlm"})


@pytest.mark.parametrize("marks", [(NOUN, PRONOUN), (PRONOUN, NOUN)])
def test_marks_wrap_their_words_in_either_order(marks):
    before = dict(ROW)
    assert shape(ROW, {}, marks)["text"] == "* The tall man * said # he # left"
    assert before == ROW, "the row itself must stay"


@pytest.mark.parametrize("index", [-1, 6, "x", None, 1.5, ""])
def test_a_mark_without_a_place_names_file_and_value(index):
    with pytest.raises(DataError, match=r"rows.jsonl:3: at2 is .*6 words"):
        shape({**ROW, "at2": index}, {}, (PRONOUN,), "rows.jsonl:3")


def test_a_mark_without_its_column():
    with pytest.raises(DataError, match="no column 'pronoun'"):
        shape({k: v for k, v in ROW.items() if k != "pronoun"}, {}, (PRONOUN,))


def test_lists_are_joined():
    assert shape({"entities": ["a", "b c"]}, {}, ())["entities"] == "a, b c"
