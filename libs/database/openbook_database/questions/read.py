"""Questions with their answers, and the evidence and document where they are known, from four kinds of files.

Which kind a file is, its first row says: SQuAD's one JSON object (Rajpurkar et al. 2016), QED's rows (Lamm et al. 2020),
the Factbook's with an old and a new answer, or rows of `question` and `answers` with `evidence`, `document` and `id`
where they are known. All are read plain, .gz or .zst. Errors are InputErrors that name file, row and field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError
from openbook_database.streams import read_lines


@dataclass(frozen=True)
class Question:
    """A question. `document`: external id of the one that answers it; `evidence`: the text that does."""

    id: str
    text: str
    answers: tuple[str, ...]
    document: str | None = None
    evidence: str | None = None


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a file, and how it was read ("squad", "qed", "factbook, old edition", "rows")."""

    kind: str
    questions: tuple[Question, ...]


def read_questions(file: Path, holds: Callable[[str], bool], limit: int | None = None) -> QuestionFile:
    """The first `limit` questions of a file, or all.

    `holds` says whether the snapshot has a document: of the Factbook's two editions the one is asked about of which it
    holds more documents.
    """
    lines = [line for line in read_lines(file) if line.strip()]
    if not lines:
        raise InputError(f"{file}: holds no question", field="qa")
    first = _parse(lines[0] if len(lines) > 1 else b"\n".join(lines), f"{file}, line 1", whole=b"\n".join(lines))
    if isinstance(first, dict) and isinstance(first.get("data"), list):
        kind, found = "squad", _squad(first, str(file))
    else:
        rows = [
            (f"{file}, line {number}", _object(_parse(line, f"{file}, line {number}"), f"{file}, line {number}"))
            for number, line in enumerate(lines, start=1)
        ]
        kind, found = _of_rows(rows, holds)
    questions = tuple(question for question, _ in zip(found, range(limit or 10**9), strict=False))
    if not questions:
        raise InputError(f"{file}: holds no question", field="qa")
    return QuestionFile(kind, questions)


def _of_rows(rows: list[tuple[str, dict[str, Any]]], holds: Callable[[str], bool]) -> tuple[str, Iterator[Question]]:
    row = rows[0][1]
    if "question_text" in row and "original_nq_answers" in row:
        return "qed", (_qed(row, place) for place, row in rows)
    if "old_answer" in row and "new_answer" in row:
        counts = {side: sum(holds(str(row.get(f"{side}_doc"))) for _, row in rows) for side in ("old", "new")}
        side = max(counts, key=lambda side: counts[side])
        return f"factbook, {side} edition", (_factbook(row, side, place) for place, row in rows)
    return "rows", (_generic(row, place) for place, row in rows)


def _squad(whole: dict[str, Any], file: str) -> Iterator[Question]:
    for count, article in enumerate(whole["data"], start=1):
        place = f"{file}, article {count}"
        for number, paragraph in enumerate(_list(_object(article, place), "paragraphs", place), start=1):
            at = f"{place}, paragraph {number}"
            context = _text(_object(paragraph, at), "context", at)
            for asked in _list(paragraph, "qas", at):
                answers = [_text(_object(each, at), "text", at) for each in _list(_object(asked, at), "answers", at)]
                if answers:  # SQuAD 2.0 has questions without
                    yield Question(
                        str(asked.get("id", "")), _text(asked, "question", at), _distinct(answers, at), evidence=context
                    )


def _qed(row: dict[str, Any], place: str) -> Question:
    groups = _list(row, "original_nq_answers", place)
    spans = [_object(span, place) for group in groups for span in (group if isinstance(group, list) else [group])]
    return Question(
        str(row.get("example_id", place)),
        _text(row, "question_text", place),
        _distinct([_text(span, "string", place) for span in spans], place),
        evidence=_text(row, "paragraph_text", place),
    )


def _factbook(row: dict[str, Any], side: str, place: str) -> Question:
    aliases = [str(each) for each in row.get(f"{side}_aliases") or ()]
    return Question(
        _text(row, "id", place),
        _text(row, "question", place),
        _distinct([_text(row, f"{side}_answer", place), *aliases], place),
        document=_text(row, f"{side}_doc", place),
        evidence=_optional(row, f"{side}_evidence", place),
    )


def _generic(row: dict[str, Any], place: str) -> Question:
    answers = row.get("answers", row.get("answer"))
    given = [answers] if isinstance(answers, str) else answers
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise InputError(
            f"{place}: field 'answers' must be a text or a list of texts; it has {_names(row)}", field="qa"
        )
    return Question(
        str(row.get("id", place)),
        _text(row, "question", place),
        _distinct(given, place),
        document=_optional(row, "document", place),
        evidence=_optional(row, "evidence", place),
    )


def _parse(text: bytes, place: str, whole: bytes | None = None) -> Any:
    """`text` as JSON, or `whole` where `text` alone is none: one object over several lines."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if whole is not None and whole != text:
            return _parse(whole, place)
        raise InputError(f"{place}: is not JSON ({error})", field="qa") from None


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place}: holds a JSON {type(value).__name__}, expected an object", field="qa")
    return value


def _list(row: dict[str, Any], name: str, place: str) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list):
        raise InputError(f"{place}: field {name!r} is missing or no list; it has {_names(row)}", field="qa")
    return value


def _text(row: dict[str, Any], name: str, place: str) -> str:
    value = _optional(row, name, place)
    if value is None:
        raise InputError(f"{place}: has no text in field {name!r}; it has {_names(row)}", field="qa")
    return value


def _optional(row: dict[str, Any], name: str, place: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: field {name!r} is a {type(value).__name__}, expected a text", field="qa")
    return value if value and value.strip() else None


def _distinct(answers: list[str], place: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(answer for answer in answers if answer.strip()))
    if not found:
        raise InputError(f"{place}: has no answer; leave out the row", field="qa")
    return found


def _names(row: dict[str, Any]) -> str:
    return ", ".join(map(repr, list(row)[:12])) or "no fields"
