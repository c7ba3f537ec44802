"""The tasks: what is asked, which answers count, and the documents of each task's database.

Files lie under one folder, as published but packed: `squad/dev-v1.1.json` (Rajpurkar et al. 2016), `nq/qed-part-a.jsonl`
(Lamm et al. 2020: Natural Questions with their paragraph), `nq/NQ-open.dev.jsonl` (Lee et al. 2019) and `factbook/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from openbook_core.errors import ArgumentError, InputError, NotFoundError
from openbook_trainer.eval.tasks import factbook
from openbook_trainer.eval.tasks.task import Question, Task, TaskDocument
from openbook_trainer.parts import PARTS
from openbook_trainer.rows import distinct, id_of, list_of, objects_of, read_rows, text_of, texts_of
from openbook_trainer.squad import Paragraph, read_paragraphs

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


def _squad_questions(data: Path, part: str = "all") -> Iterator[Question]:
    for paragraph in read_paragraphs(data / _SQUAD, part):
        for asked in paragraph.asked:
            answers = distinct(asked.answers, asked.place)
            yield Question(asked.id, asked.question, answers, _squad_id(paragraph))


def _squad_documents(data: Path) -> Iterator[TaskDocument]:
    for paragraph in read_paragraphs(data / _SQUAD):
        yield TaskDocument(_squad_id(paragraph), paragraph.title.replace("_", " "), paragraph.text)


def _squad_id(paragraph: Paragraph) -> str:
    return f"{paragraph.title}/{paragraph.number}"


def _qed_questions(data: Path) -> Iterator[Question]:
    for place, row in read_rows(data / _QED):
        groups = range(len(list_of(row, "original_nq_answers", place)))
        spans = [span for number in groups for span in objects_of(row, f"original_nq_answers.{number}", place)]
        answers = distinct((text_of(span, "string", place) for span in spans), place)
        yield Question(
            id_of(row, "example_id", place), text_of(row, "question_text", place), answers, _qed_id(row, place)
        )


def _qed_documents(data: Path) -> Iterator[TaskDocument]:
    known: set[str] = set()
    for place, row in read_rows(data / _QED):
        if (id_ := _qed_id(row, place)) not in known:
            known.add(id_)
            yield TaskDocument(id_, text_of(row, "title_text", place), text_of(row, "paragraph_text", place))


def _qed_id(row: dict[str, Any], place: str) -> str:
    return "qed/" + sha256(text_of(row, "paragraph_text", place).encode()).hexdigest()[:16]


def _open_questions(data: Path) -> Iterator[Question]:
    for place, row in read_rows(data / _OPEN):
        text = text_of(row, "question", place)
        answers = distinct(texts_of(row, "answer", place), place)
        yield Question(sha256(text.encode()).hexdigest()[:16], text, answers)


_TASKS = {
    task.name: task
    for task in (
        Task("nq", "qed", _qed_questions, _qed_documents),
        Task("nq-open", None, _open_questions, None),
        Task("squad", "squad", _squad_questions, _squad_documents),
    )
}
