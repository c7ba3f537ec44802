"""The tasks: what is asked, which answers count, and the documents of each task's database.

Files lie under one folder, as published but packed: `squad/dev-v1.1.json` (Rajpurkar et al. 2016), `nq/qed-part-a.jsonl`
(Lamm et al. 2020: Natural Questions with their paragraph), `nq/NQ-open.dev.jsonl` (Lee et al. 2019) and `factbook/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError, NotFoundError
from openbook_database.streams import read_lines

EDITION = "2026-02-19"
_PEOPLE = f"factbook/people_2015-11-18_{EDITION}.jsonl.zst"
_FIELDS = f"factbook/qa_2015-11-18_{EDITION}.jsonl.zst"
_BOOK = f"factbook/{EDITION}.jsonl.zst"
_SQUAD, _QED, _OPEN = "squad/dev-v1.1.json.zst", "nq/qed-part-a.jsonl.zst", "nq/NQ-open.dev.jsonl.zst"
# Extracted by rule, and between editions often only reworded.
_LEFT_OUT = "government type"


@dataclass(frozen=True)
class Question:
    """One question with every answer that counts; `document` holds its evidence, None where there is none."""

    id: str
    text: str
    answers: tuple[str, ...]
    document: str | None = None


@dataclass(frozen=True)
class TaskDocument:
    """A document of a task's database."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Task:
    """A task by its readers; one without `documents` is closed-book only. `corpus` names what tasks may share."""

    name: str
    corpus: str | None
    questions: Callable[[Path], Iterator[Question]]
    documents: Callable[[Path], Iterator[TaskDocument]] | None


def find_task(name: str) -> Task:
    """Raises NotFoundError, which names the known ones."""
    if name not in TASKS:
        raise NotFoundError(f"no task {name!r}; known are {', '.join(TASKS)}", field="tasks")
    return TASKS[name]


def read_documents(task: Task, data: Path, limit: int | None = None) -> list[TaskDocument]:
    """The documents of the task's database, or the first `limit`; none for a closed-book task. Errors as the readers'."""
    if task.documents is None:
        return []
    return [document for _, document in zip(range(limit or 10**9), task.documents(data), strict=False)]


def read_questions(task: Task, data: Path, limit: int | None, documents: Iterable[str] | None = None) -> list[Question]:
    """Questions in the order of a hash of their ids, so that the first `limit` are a sample; `documents` restricts them.

    Raises InputError (file, line and key) for a row of another form, and where no question is left.
    """
    held = None if documents is None else set(documents)
    found = [each for each in task.questions(data) if held is None or each.document in held]
    if not found:
        raise InputError(
            f"task {task.name}: no question is about the documents that were kept; keep more", field="tasks"
        )
    found.sort(key=lambda question: sha256(question.id.encode()).hexdigest())
    return found[:limit]


def _rows(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of each line; every row must have `keys`."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: is not JSON: {error}", field="data") from None
        _require(row, keys, place)
        yield place, row


def _require(row: Any, keys: tuple[str, ...], place: str) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{place}: holds a JSON {type(row).__name__}, expected an object", field="data")
    missing = [key for key in keys if key not in row]
    if missing:
        raise InputError(
            f"{place}: without {', '.join(missing)}; expected the keys {', '.join(keys)}, found "
            f"{', '.join(row) or 'none'}",
            field="data",
        )


def _answers(values: Iterable[str], place: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(value for value in values if isinstance(value, str) and value.strip()))
    if not found:
        raise InputError(f"{place}: has no answer; expected one or more strings", field="data")
    return found


def _squad(data: Path) -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """(document id, title, paragraph, place) of SQuAD 1.1's one JSON object."""
    path = data / _SQUAD
    try:
        whole = json.loads(b"\n".join(read_lines(path)))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}", field="data") from None
    _require(whole, ("data",), str(path))
    for article in whole["data"]:
        _require(article, ("title", "paragraphs"), str(path))
        for number, paragraph in enumerate(article["paragraphs"]):
            place = f"{path}, {article['title']}, paragraph {number}"
            _require(paragraph, ("context", "qas"), place)
            yield f"{article['title']}/{number}", article["title"].replace("_", " "), paragraph, place


def _squad_questions(data: Path) -> Iterator[Question]:
    for document, _, paragraph, place in _squad(data):
        for row in paragraph["qas"]:
            _require(row, ("id", "question", "answers"), place)
            answers = _answers((answer.get("text") for answer in row["answers"]), f"{place}, question {row['id']}")
            yield Question(row["id"], row["question"].strip(), answers, document)


def _squad_documents(data: Path) -> Iterator[TaskDocument]:
    for document, title, paragraph, _ in _squad(data):
        yield TaskDocument(document, title, paragraph["context"])


_QED_KEYS = ("example_id", "title_text", "question_text", "paragraph_text", "original_nq_answers")


def _qed_questions(data: Path) -> Iterator[Question]:
    for place, row in _rows(data / _QED, _QED_KEYS):
        spans = (span["string"] for answer in row["original_nq_answers"] for span in answer)
        yield Question(str(row["example_id"]), row["question_text"], _answers(spans, place), _qed_id(row))


def _qed_documents(data: Path) -> Iterator[TaskDocument]:
    known: set[str] = set()
    for _, row in _rows(data / _QED, _QED_KEYS):
        if _qed_id(row) not in known:
            known.add(_qed_id(row))
            yield TaskDocument(_qed_id(row), row["title_text"], row["paragraph_text"])


def _qed_id(row: dict[str, Any]) -> str:
    return "qed/" + sha256(row["paragraph_text"].encode()).hexdigest()[:16]


def _open_questions(data: Path) -> Iterator[Question]:
    for place, row in _rows(data / _OPEN, ("question", "answer")):
        yield Question(
            sha256(row["question"].encode()).hexdigest()[:16], row["question"], _answers(row["answer"], place)
        )


_FACT_KEYS = ("id", "field", "question", "new_answer", "new_aliases", "new_doc")


def _people(data: Path) -> Iterator[Question]:
    for place, row in _rows(data / _PEOPLE, (*_FACT_KEYS, "clean")):
        if row["clean"]:
            yield _fact(row, place)


def _facts(data: Path) -> Iterator[Question]:
    for place, row in _rows(data / _FIELDS, _FACT_KEYS):
        if row["field"] != _LEFT_OUT:
            yield _fact(row, place)


def _fact(row: dict[str, Any], place: str) -> Question:
    return Question(
        row["id"], row["question"], _answers([row["new_answer"], *row["new_aliases"]], place), row["new_doc"]
    )


def _book(data: Path) -> Iterator[TaskDocument]:
    for _, row in _rows(data / _BOOK, ("id", "country", "text")):
        yield TaskDocument(row["id"], row["country"], row["text"])


TASKS = {
    task.name: task
    for task in (
        Task("nq", "qed", _qed_questions, _qed_documents),
        Task("nq-open", None, _open_questions, None),
        Task("squad", "squad", _squad_questions, _squad_documents),
        Task("factbook", "factbook", _people, _book),
        Task("factbook-qa", "factbook", _facts, _book),
    )
}
