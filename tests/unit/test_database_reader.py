"""Reading documents: every kind of input that is not what it should be, and what is said about it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from openbook_core.errors import InputError
from openbook_database.reader import BadLineError, Document, DocumentReader, FieldNames, Source
from openbook_database.streams import read_lines

GOOD = b'{"id": "a", "text": "words", "country": "Angola"}'


def read(
    path: Path, fields: FieldNames | None = None, *, skip: bool = False, licence: str | None = None
) -> tuple[list[Document], dict[str, int]]:
    reader = DocumentReader(
        Source(path=path, licence=licence), fields or FieldNames(), skip_bad_lines=skip, known=set()
    )
    return list(reader.read(lambda document: document)), dict(reader.skipped)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_reads_plain_and_compressed_files_alike(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": number, "text": f"wörds {number} " * 5000} for number in range(40)]
    data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    half = len(data) // 2
    path = tmp_path / f"input{suffix}"
    if suffix.endswith("gz"):
        data = gzip.compress(data[:half]) + gzip.compress(data[half:])
    elif suffix.endswith("zst"):
        data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    path.write_bytes(data)
    documents, _ = read(path)
    assert [(d.external_id, d.text) for d in documents] == [(str(row["id"]), row["text"]) for row in rows]
    if suffix != ".jsonl":
        path.write_bytes(data[:-20])
        with pytest.raises(InputError, match=r"cut short|damaged"):
            read(path)
        path.write_bytes(b"plain words")
        with pytest.raises(InputError, match="damaged or not"):
            read(path)


def test_lines_are_those_of_the_file_whatever_the_block_size(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    data = b"\n".join(bytes([65 + number % 26]) * (number * 9973 % 300_000) for number in range(40)) + b"\n\nend"
    path.write_bytes(data)
    assert list(read_lines(path)) == data.split(b"\n")


def test_fields_have_names_that_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    row = {
        "key": 7,
        "body": "words",
        "title": " ",
        "name": "N",
        "url": "http://x",
        "license": "MIT",
        "n": 1,
        "o": {"b": 1, "a": None},
    }
    path.write_text(json.dumps(row))
    (document,), _ = read(path, FieldNames(id="key", text="body", metadata=("n", "o", "absent")), licence="other")
    assert document == Document("7", "words", "N", "http://x", "MIT", ("1", '{"a":null,"b":1}', None))
    path.write_bytes(GOOD)
    (document,), _ = read(path, licence="CC0")
    assert (document.title, document.licence) == ("Angola", "CC0")


def test_blank_lines_and_a_byte_order_mark_are_no_errors(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\n  \n")
    documents, skipped = read(path)
    assert len(documents) == 1
    assert not skipped


BAD_LINES: list[tuple[bytes, str, str]] = [
    (b"{not json", "not JSON", "is not JSON"),
    (b"[" * 100_000, "not JSON", "is not JSON"),
    (b'["list"]', "not an object", "holds a JSON list"),
    (b"17", "not an object", "holds a JSON number"),
    (b"null", "not an object", "holds a JSON null"),
    (b'{"id": "b", "text": "\xff\xfe"}', "not UTF-8", "byte 0xff at 21"),
    (b'{"text": "words", "title": "T"}', "no id", "no field 'id'.*'text', 'title'"),
    (b'{"id": null, "text": "words"}', "no id", "no field 'id'"),
    (b'{"id": "", "text": "words"}', "no id", "no field 'id'"),
    (b'{"id": true, "text": "words"}', "id is no string", "boolean"),
    (b'{"id": [1], "text": "words"}', "id is no string", "list"),
    (b'{"id": "a", "text": "again"}', "duplicate id", "'a' was used"),
    (b'{"id": "b"}', "no text", "no field 'text'.*it has 'id'"),
    (b'{"id": "b", "text": 5}', "text is no string", "number"),
    (b'{"id": "b", "text": null}', "text is no string", "null"),
    (b'{"id": "b", "text": ""}', "empty text", "'b' has an empty text"),
    (b'{"id": "b", "text": " \\n\\t "}', "empty text", "'b' has an empty text"),
    (b'{"id": "b", "text": "half \\ud83d pair"}', "not Unicode", "surrogate"),
    (b'{"id": "\\ud83d", "text": "words"}', "not Unicode", "surrogate"),
    (b'{"id": "b", "text": "words", "title": "\\udc00"}', "not Unicode", "'title'"),
]


@pytest.mark.parametrize(("line", "kind", "message"), BAD_LINES)
def test_a_bad_line_is_named_or_counted(tmp_path: Path, line: bytes, kind: str, message: str) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD.replace(b'"a"', b'"c"') + b"\n")
    with pytest.raises(BadLineError, match=rf"input\.jsonl, line 3: .*{message}") as caught:
        read(path)
    assert "skip" in str(caught.value)
    documents, skipped = read(path, skip=True)
    assert [document.external_id for document in documents] == ["a", "c"]
    assert skipped == {kind: 1}


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such input file: .*gone\.jsonl"):
        read(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)


def test_reading_goes_on_after_a_line(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    rows: list[dict[str, Any]] = [{"id": str(number), "text": "words"} for number in range(5)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    reader = DocumentReader(Source(path=path), FieldNames(), skip_bad_lines=False, known={"0", "1", "2"})
    reader.skip_to(3)
    assert [document.external_id for document in reader.read(lambda document: document)] == ["3", "4"]
    assert reader.line == 5
