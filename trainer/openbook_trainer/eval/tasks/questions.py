"""The tasks: what is asked, which answers count, and the documents of each task's database.

Files lie under one folder, as published but packed: `squad/dev-v1.1.json` (Rajpurkar et al. 2016), `nq/qed-part-a.jsonl`
(Lamm et al. 2020: Natural Questions with their paragraph), `nq/NQ-open.dev.jsonl` (Lee et al. 2019) and `factbook/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from openbook_core.errors import ArgumentError, InputError, NotFoundError
from openbook_database.streams import read_lines
from openbook_trainer.eval.tasks import factbook
from openbook_trainer.eval.tasks.files import (
    read_rows,
    require,
    require_answers,
    require_list,
    require_rows,
    require_text,
)
from openbook_trainer.eval.tasks.task import Question, Task, TaskDocument
from openbook_trainer.parts import PARTS, is_of_part

_SQUAD, _QED, _OPEN = "squad/dev-v1.1.json.zst", "nq/qed-part-a.jsonl.zst", "nq/NQ-open.dev.jsonl.zst"


def find_task(name: str, part: str = "all") -> Task:
    """The task with the questions of a part (see `parts`); its database is the whole one.

    Raises NotFoundError, which names the known ones, and ArgumentError for no part, or a task that has none.
    """
    if part not in PARTS:
        raise ArgumentError(f"part {part!r}: expected {', '.join(PARTS)}", field="part")
    kind, _, edition = name.partition("@")
    if kind in factbook.NAMES:
        return factbook.factbook_task(name, part)
    if kind not in _TASKS or edition:
        known = ", ".join([*_TASKS, *factbook.NAMES])
        raise NotFoundError(f"no task {name!r}; known are {known} (these three with @EDITION, too)", field="tasks")
    if name == "squad":
        return replace(_TASKS[name], questions=partial(_squad_questions, part=part))
    if part != "all":
        raise ArgumentError(
            f"task {name} is in no parts, as no tuning reads its files; ask it in a run without --part", field="part"
        )
    return _TASKS[name]


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


def _squad(data: Path) -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """(document id, article's title, paragraph, place) of SQuAD 1.1's one JSON object."""
    path = data / _SQUAD
    try:
        whole = json.loads(b"\n".join(read_lines(path)))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}", field="data") from None
    require(whole, ("data",), str(path))
    for article in require_rows(whole["data"], ("title", "paragraphs"), str(path)):
        place = f"{path}, {require_text(article, 'title', str(path))}"
        for number, paragraph in enumerate(require_rows(article["paragraphs"], ("context", "qas"), place)):
            place = f"{path}, {article['title']}, paragraph {number}"
            yield f"{article['title']}/{number}", article["title"], paragraph, place


def _squad_questions(data: Path, part: str = "all") -> Iterator[Question]:
    for document, title, paragraph, place in _squad(data):
        if not is_of_part(title, part):
            continue
        for row in require_rows(paragraph["qas"], ("id", "question", "answers"), place):
            asked = f"{place}, question {row['id']}"
            answers = [answer["text"] for answer in require_rows(row["answers"], ("text",), asked)]
            text = require_text(row, "question", asked).strip()
            yield Question(str(row["id"]), text, require_answers(answers, asked), document)


def _squad_documents(data: Path) -> Iterator[TaskDocument]:
    for document, title, paragraph, place in _squad(data):
        yield TaskDocument(document, title.replace("_", " "), require_text(paragraph, "context", place))


_QED_KEYS = ("example_id", "title_text", "question_text", "paragraph_text", "original_nq_answers")


def _qed_questions(data: Path) -> Iterator[Question]:
    for place, row in read_rows(data / _QED, _QED_KEYS):
        spans = [
            span["string"]
            for answer in require_list(row["original_nq_answers"], place)
            for span in require_rows(answer, ("string",), place)
        ]
        text = require_text(row, "question_text", place)
        yield Question(str(row["example_id"]), text, require_answers(spans, place), _qed_id(row, place))


def _qed_documents(data: Path) -> Iterator[TaskDocument]:
    known: set[str] = set()
    for place, row in read_rows(data / _QED, _QED_KEYS):
        if (id_ := _qed_id(row, place)) not in known:
            known.add(id_)
            yield TaskDocument(id_, require_text(row, "title_text", place), row["paragraph_text"])


def _qed_id(row: dict[str, Any], place: str) -> str:
    return "qed/" + sha256(require_text(row, "paragraph_text", place).encode()).hexdigest()[:16]


def _open_questions(data: Path) -> Iterator[Question]:
    for place, row in read_rows(data / _OPEN, ("question", "answer")):
        text = require_text(row, "question", place)
        yield Question(sha256(text.encode()).hexdigest()[:16], text, require_answers(row["answer"], place))


_TASKS = {
    task.name: task
    for task in (
        Task("nq", "qed", _qed_questions, _qed_documents),
        Task("nq-open", None, _open_questions, None),
        Task("squad", "squad", _squad_questions, _squad_documents),
    )
}
