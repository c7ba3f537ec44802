"""SQuAD's one JSON object (Rajpurkar et al. 2016), read for tuning and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook_trainer.parts import is_of_part
from openbook_trainer.rows import objects_of, read_whole, text_of, verbatim_of


@dataclass(frozen=True)
class Asked:
    """A question with its distinct answers, none where it has none. `place` is for errors."""

    id: str
    question: str
    answers: tuple[str, ...]
    place: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of an article; `number` counts from 0 in the article."""

    title: str
    number: int
    text: str
    asked: tuple[Asked, ...]


def read_paragraphs(file: Path, part: str = "all") -> Iterator[Paragraph]:
    """Of the articles of a part (see `parts`). Raises InputError (file, article, paragraph, question and field)."""
    for count, article in enumerate(objects_of(read_whole(file), "data", str(file)), start=1):
        title = text_of(article, "title", f"{file}, article {count}")
        if not is_of_part(title, part):
            continue
        for number, paragraph in enumerate(objects_of(article, "paragraphs", f"{file}, {title}")):
            place = f"{file}, {title}, paragraph {number}"
            text = verbatim_of(paragraph, "context", place)
            asked = tuple(_asked(row, place) for row in objects_of(paragraph, "qas", place))
            yield Paragraph(title, number, text, asked)


def _asked(row: dict[str, Any], place: str) -> Asked:
    id_ = text_of(row, "id", place)
    at = f"{place}, question {id_}"
    answers = tuple(dict.fromkeys(text_of(each, "text", at) for each in objects_of(row, "answers", at)))
    return Asked(id_, text_of(row, "question", at), answers, at)
