"""Files of rows: every format reads the same, and a bad file says where and what to do."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pemt.errors import DataError
from pemt.tasks.files import CELL_LIMIT, at, read_file
from pemt.tasks.rows import load_examples
from tests.tasks.builders import make_task, mirror

JSONL = '{"text": "one", "label": 0}\n\n{"text": "two", "label": "good"}\n'
LINE = '{"text": "one", "label": 0}\n'


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zipped(content):
    return gzip.compress(content if isinstance(content, bytes) else content.encode(), mtime=0)


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.csv", 'text,label\n"a, ""b""\nc",0\nd,1\n', [2, 4]),
        ("a.csv", '\ufefftext,label\r\n"a, ""b""\nc",0\r\n\r\nd,1\r\n', [2, 5]),
        ("a.csv", '\n\ntext,label\n"a, ""b""\nc",0\nd,1', [4, 6]),
        ("a.csv", 'text,label\r"a, ""b""\nc",0\rd,1\r', [2, 4]),
        ("a.tsv", 'text\tlabel\n"a, ""b""\nc"\t0\nd\t1\n', [2, 4]),
        ("a.csv.gz", zipped('text,label\n"a, ""b""\nc",0\nd,1\n'), [2, 4]),
    ],
)
def test_quotes_newlines_byte_order_marks_and_line_ends(tmp_path, name, content, lines):
    rows = read_file(put(tmp_path, name, content))
    assert [row for _, row in rows] == [
        {"text": 'a, "b"\nc', "label": "0"},
        {"text": "d", "label": "1"},
    ]
    assert [line for line, _ in rows] == lines


def test_jsonl_with_byte_order_mark_crlf_and_line_separators_in_strings(tmp_path):
    content = '\ufeff{"text": "a\u2028b\\r\\n\u0085c"}\r\n\r\n{"text": "d"}'
    assert read_file(put(tmp_path, "a.jsonl", content)) == [
        (1, {"text": "a\u2028b\r\n\u0085c"}),
        (3, {"text": "d"}),
    ]


def test_a_cell_longer_than_python_s_limit_is_read_and_the_limit_put_back(tmp_path):
    long, before = "x" * 200_000, csv.field_size_limit()
    assert len(long) > before
    ((_, row),) = read_file(put(tmp_path, "a.csv", f'text,label\n"{long}",0\n'))
    assert row["text"] == long
    assert csv.field_size_limit() == before


def test_parquet_gives_the_rows_of_jsonl(tmp_path):
    rows = [
        {"text": f"row {i}", "label": i % 2, "score": i / 2, "none": None,
         "answers": {"text": ["a", f"b{i}"], "start": [1, i]}, "spans": [{"from": i}] * (i % 3)}
        for i in range(2500)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    put(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read_file(tmp_path / "a.parquet") == read_file(tmp_path / "a.jsonl")


def test_parquet_rows_are_examples_and_errors_name_the_row(tmp_path):
    def load(labels):
        texts = [f"row {i}" for i in range(len(labels))]
        pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "a.parquet")
        task = make_task(tmp_path, rows={"files": {"train": "a.parquet"}})
        return load_examples(task)["train"]

    assert [(e.text, e.label) for e in load([0, 1])] == [("text: row 0", 0), ("text: row 1", 1)]
    with pytest.raises(DataError, match=r"a\.parquet, row 3: label 7 is outside"):
        load([0, 1, 7])
    assert (at("a.parquet", 3), at("a.csv", 3)) == ("a.parquet, row 3", "a.csv:3")


def test_parquet_bytes_are_text(tmp_path):
    """Strings without Parquet's UTF-8 annotation, as older writers leave them."""
    words, spans = pa.array(["ham", "é", None]), [[{"of": b"a"}], [], None]
    table = pa.table({
        "label": words.cast(pa.binary()), "large": words.cast(pa.large_binary()),
        "coded": words.cast(pa.binary()).dictionary_encode(), "spans": spans,
        "two": pa.array([b"ab", b"cd", None], pa.binary(2)), "text": words,
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    first, second, third = (row for _, row in read_file(tmp_path / "a.parquet"))
    assert first == {
        **dict.fromkeys(("label", "large", "coded", "text"), "ham"), "spans": [{"of": "a"}],
        "two": "ab",
    }  # fmt: skip
    assert [second["label"], second["large"], second["coded"]] == ["é"] * 3
    assert set(third.values()) == {None}


def test_parquet_bytes_that_are_no_text_are_refused_where_they_are_read(tmp_path):
    """Not where no task looks, as at images beside the text."""
    table = pa.table({"text": ["a", "b"], "label": [b"good", b"\xff"], "image": [b"\xff"] * 2})
    pq.write_table(table, tmp_path / "a.parquet")
    task = make_task(tmp_path, rows={"files": {"train": "a.parquet"}})
    with pytest.raises(
        DataError, match=r"a\.parquet, row 2: the column 'label' holds bytes that are not UTF-8\n"
    ):
        load_examples(task)
    pq.write_table(table.slice(0, 1), tmp_path / "a.parquet")
    (example,) = load_examples(task)["train"]
    assert (example.text, example.label) == ("text: a", 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("A.CSV", "text,label\nx,0\n"),
        ("A.Tsv", "text\tlabel\nx\t0\n"),
        ("A.JSONL", '{"text": "x", "label": "0"}\n'),
        ("A.CSV.GZ", zipped("text,label\nx,0\n")),
    ],
)
def test_suffixes_are_read_in_any_case(tmp_path, name, content):
    assert [row for _, row in read_file(put(tmp_path, name, content))] == [
        {"text": "x", "label": "0"}
    ]


def test_parquet_is_read_in_any_case(tmp_path):
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "A.PARQUET")
    assert read_file(tmp_path / "A.PARQUET") == [(1, {"text": "x"})]
    assert at("A.PARQUET", 3) == "A.PARQUET, row 3"


def test_whole_characters_in_escapes_are_read(tmp_path):
    r"""A pair of surrogates is a character, and an escaped backslash before u no surrogate."""
    content = r"""{"text": "\ud83d\ude00", "\uD83D\uDE00": ["\\ud83d", "\ud7ff"]}"""
    ((_, row),) = read_file(put(tmp_path, "a.jsonl", content))
    assert row == {"text": "\U0001f600", "\U0001f600": ["\\ud83d", "\ud7ff"]}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl has no rows\n.*at least one labelled row"),
        ("a.csv", "", r"a\.csv has no rows"),
        ("a.csv", "text,label\n", r"a\.csv has no rows"),
        ("a.jsonl.gz", zipped(""), r"a\.jsonl\.gz has no rows"),
        ("a.jsonl", JSONL + "{broken\n", r"a\.jsonl:4: not JSON: .* column 2\n.*one JSON object"),
        ("a.jsonl", LINE + LINE[:-4] + "\n" + LINE, r"a\.jsonl:2: not JSON"),
        ("a.jsonl", LINE + "[1]\n", r"a\.jsonl:2: a list, not an object\n.*\{"),
        ("a.jsonl", LINE + r'{"text": "so \ud83d"}', r"a\.jsonl:2: \\ud83d is half a.*\n.*whole"),
        ("a.jsonl", r'{"text": {"of": ["\uDE00", 1]}}', r"a\.jsonl:1: \\ude00 is half a character"),
        ("a.jsonl", LINE + r'{"t": {"\uD83dx": 1}}', r"a\.jsonl:2: \\ud83d is half a character"),
        ("a.csv", 'text,label\n"x\ny",0\nz\n', r"a\.csv:4: 1 cells, and the header has 2 \(te.*\n"),
        ("a.csv", "text,label\nx,y,0\n", r"a\.csv:2: 3 cells.*\n.*quote cells"),
        ("a.csv", 'text,label\nx,0\n"y,1\nz,0\n', r"a\.csv:3: .*\n.*close every quote"),
        ("a.csv", 'text,label\nx,0\n"y" z,1\n', r"a\.csv:3: .*\n.*quote"),
        ("a.csv", "text,text\nx,0\n", r"a\.csv:1: the column 'text' is there twice\n.*rename"),
        ("a.csv", "\n\ntext,text\nx,0\n", r"a\.csv:3: the column 'text' is there twice"),
        ("a.csv", b"text,label\nx,0\n\xe9t\xe9,1\n", r"a\.csv:3: byte 0xe9 is not UTF-8\n.*save"),
        ("a.jsonl", LINE.encode() * 2 + b'{"text": "\xff"}\n', r"a\.jsonl:3: byte 0xff is not"),
        ("a.jsonl.gz", zipped(LINE.encode() + b'{"text": "\xc3'), r"a\.jsonl\.gz:2: byte 0xc3"),
        ("a.csv", "text,label\nx,0\n".encode("utf-16"), r"a\.csv:1: byte 0xff is not UTF-8"),
        ("a.csv", "text,label\n".encode("utf-16-le"), r"a\.csv:1: a NUL byte.*UTF-16\n.*UTF-8"),
        ("a.jsonl", LINE + LINE + '{"text": "x\0y"}\n', r"a\.jsonl:3: a NUL byte"),
        ("a.tsv", "text,label\nx,0\n", r"a\.tsv:1: one column, 'text,label'.*commas.*\n.*\.csv"),
        ("a.csv", "text\tlabel\nx\t0\n", r"a\.csv:1: one column.*tabs, not by commas\n.*\.tsv"),
        ("a.csv", "text;label\nx;0\n", r"a\.csv:1: one column.*semicolons.*\n.*with commas"),
        ("a.jsonl.gz", zipped(JSONL)[:-12], r"a\.jsonl\.gz:\d+: .*truncated .*\n.*again"),
        ("a.jsonl.gz", zipped(LINE * 9)[:-8], r"a\.jsonl\.gz:\d+: .*truncated or not gzip"),
        ("a.jsonl.gz", zipped(JSONL)[:-8] + bytes(8), r"truncated or not gzip: CRC"),
        ("a.jsonl.gz", JSONL, r"a\.jsonl\.gz:1: .*truncated or not gzip"),
        ("a.xlsx", "x", r"none of the file types.*\n.*\.jsonl, each also with \.gz, and \.parquet"),
        ("a.parquet.gz", "x", "none of the file types"),
        ("a.parquet", "", r"a\.parquet is truncated or not Parquet: .*\n.*again"),
        ("a.parquet", "text,label\nx,0\n", r"a\.parquet is truncated or not Parquet"),
    ],
)  # fmt: skip
def test_bad_files_name_file_line_and_remedy(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_file(put(tmp_path, name, content))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl.gz", "a.parquet"])
def test_what_is_not_there_or_no_file(tmp_path, name):
    with pytest.raises(DataError, match="does not exist"):
        read_file(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=name):
        read_file(tmp_path / name)


def test_a_quote_that_swallows_a_large_file_is_found(tmp_path):
    content = 'text,label\nx,0\n"y,1\n' + ("z" * 99 + ",0\n") * (CELL_LIMIT // 100)
    with pytest.raises(DataError, match=r"a\.csv:3: a cell of more than 16,777,216 characters\n.*"):
        read_file(put(tmp_path, "a.csv", content))


def test_damaged_parquet(tmp_path):
    rows = [{"text": f"some text {i * 7919}", "label": i} for i in range(5000)]
    path = tmp_path / "a.parquet"
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, path, row_group_size=1000, write_page_checksum=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.parquet is truncated or not Parquet"):
        read_file(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with pytest.raises(DataError, match=r"a\.parquet \(after row \d000\) is truncated or not"):
        read_file(path)
    pq.write_table(pa.table([[1], [2]], names=["text", "text"]), path)
    with pytest.raises(DataError, match="the column 'text' is there twice"):
        read_file(path)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match="has no rows"):
        read_file(path)


# -- large files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv.gz"])
def test_memory_holds_the_rows_and_no_copy_of_the_file(tmp_path, name):
    texts = [f"{i} " + "word " * 200 for i in range(3000)]
    if "csv" in name:
        content = "text\n" + "".join(f"{text}\n" for text in texts)
    else:
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    path = put(tmp_path, name, zipped(content) if name.endswith("gz") else content)
    tracemalloc.start()
    try:
        rows = read_file(path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(rows) == 3000
    assert len(content) > 2_000_000
    assert peak - kept < 0.2 * len(content)


@pytest.mark.mirror
def test_a_truncated_mirror_file_is_never_a_smaller_set(tmp_path):
    whole = (mirror() / "superglue_cb" / "train.jsonl.gz").read_bytes()
    rows = read_file(put(tmp_path, "train.jsonl.gz", whole))
    assert len(rows) > 100
    for share in (0.3, 0.9, 0.999):
        with pytest.raises(DataError, match=r"train\.jsonl\.gz:\d+: .*truncated"):
            read_file(put(tmp_path, "train.jsonl.gz", whole[: int(share * len(whole))]))
