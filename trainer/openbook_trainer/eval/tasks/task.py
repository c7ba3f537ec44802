"""What a task is: its questions, and the documents of its database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """One question with every answer that counts; `document` holds its evidence, None where there is none.

    `other_answers` are those of the edition that is not served; None for a task without editions.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    document: str | None = None
    other_answers: tuple[str, ...] | None = None


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
