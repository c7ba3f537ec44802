"""Texts of evaluation files: JSON Lines (.jsonl, .gz, .zst), JSON such as SQuAD's (.json), and plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError
from openbook_database.streams import file_digest, read_lines

# Whose strings are evaluation texts, at any depth of a row; other strings (ids, titles, addresses) are not.
# fmt: off
TEXT_KEYS = frozenset((
    "text", "question", "questions", "query", "answer", "answers", "context", "contexts", "passage", "passages",
    "paragraph", "paragraphs", "document", "documents", "evidence", "content", "prompt", "completion",
    "instruction", "input", "output", "response", "target", "targets", "choices", "options", "question_text",
    "original_nq_question", "paragraph_text",
))
# fmt: on
_TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".tokens")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


@dataclass(frozen=True)
class EvaluationText:
    """A text and where it is from: "dev.json: data.3.paragraphs.0.context", "dev.jsonl, line 7: question"."""

    item: str
    text: str


def digest_evaluation(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size and digest of each file."""
    records = []
    for path in paths:
        size, digest = file_digest(path)
        records.append({"name": path.name, "size": size, "blake3": digest})
    return records


def read_evaluation(path: Path) -> Iterator[EvaluationText]:
    """The texts of a file: of JSON the strings under TEXT_KEYS, of plain text the paragraphs between blank lines.

    Raises InputError for a file that cannot be read or has no such text.
    """
    found = False
    for item, text in _texts(path):
        if text.strip():
            found = True
            yield EvaluationText(item, text)
    if not found:
        raise InputError(
            f"{path} has no evaluation text: expected plain text, or JSON with one of the fields "
            f"{', '.join(sorted(TEXT_KEYS))}",
            field="decontaminate",
        )


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    suffix = suffixes[-1].lower() if suffixes else ""
    if suffix == ".json":
        yield from _strings(_parse(b"\n".join(read_lines(path)), str(path)), path.name + ": ", "")
    elif suffix in _TEXT_SUFFIXES:
        text = _decode(b"\n".join(read_lines(path)), str(path))
        for number, paragraph in enumerate(_BLANK_LINE.split(text), start=1):
            yield f"{path.name}, paragraph {number}", paragraph
    else:
        for number, line in enumerate(read_lines(path), start=1):
            if line.strip():
                where = f"{path.name}, line {number}"
                yield from _strings(_parse(line, f"{path}, line {number}"), where + ": ", "")


def _decode(data: bytes, where: str) -> str:
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: {error}", field="decontaminate") from error


def _parse(data: bytes, where: str) -> Any:
    try:
        return json.loads(_decode(data, where))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}", field="decontaminate") from error


def _strings(value: Any, where: str, key: str) -> Iterator[tuple[str, str]]:
    """Strings below `value`, which stands under the field `key`; a list passes its field on to its members."""
    if isinstance(value, str):
        if key in TEXT_KEYS:
            yield where, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _strings(part, _below(where, name), str(name).lower())
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from _strings(part, _below(where, place), key)


def _below(where: str, name: object) -> str:
    return f"{where}{name}" if where.endswith(": ") else f"{where}.{name}"
