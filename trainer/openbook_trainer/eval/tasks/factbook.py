"""The World Factbook's tasks: one edition is served, and each question has the answers of another one, too.

`factbook`: people in office that changed, where neither name occurs in the other edition; `factbook-fields`: the
fields that are not people; `factbook-qa`: both kinds, changed or not. `NAME@EDITION` serves another edition than the
last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from openbook_core.errors import NotFoundError
from openbook_trainer.eval.tasks.task import Question, Task, TaskDocument
from openbook_trainer.parts import LEFT_OUT, PEOPLE, is_of_part
from openbook_trainer.rows import distinct, flag_of, read_rows, text_of, texts_of, verbatim_of

LAST = "2026-02-19"
# Each edition with the one that its answers are compared with.
EDITIONS = {"2015-11-18": LAST, "2021-02-15": LAST, LAST: "2015-11-18"}
NAMES = ("factbook", "factbook-fields", "factbook-qa")


def factbook_task(name: str, part: str) -> Task:
    """Of `NAME` or `NAME@EDITION`, about the countries of a part; raises NotFoundError for another edition."""
    kind, _, edition = name.partition("@")
    edition = edition or LAST
    if edition not in EDITIONS:
        raise NotFoundError(f"task {name}: no edition {edition!r}; there are {', '.join(EDITIONS)}", field="tasks")
    return Task(
        name,
        f"factbook-{edition}",
        partial(_questions, kind=kind, served=edition, part=part),
        partial(_documents, edition=edition),
    )


def _documents(data: Path, edition: str) -> Iterator[TaskDocument]:
    for place, row in read_rows(data / "factbook" / f"{edition}.jsonl.zst"):
        yield TaskDocument(text_of(row, "id", place), text_of(row, "country", place), verbatim_of(row, "text", place))


def _questions(data: Path, kind: str, served: str, part: str) -> Iterator[Question]:
    other = EDITIONS[served]
    this, that = ("old", "new") if served < other else ("new", "old")
    file = f"{'people' if kind == 'factbook' else 'qa'}_{min(served, other)}_{max(served, other)}.jsonl.zst"
    for place, row in read_rows(data / "factbook" / file):
        if not _is_of_kind(row, kind, place) or not is_of_part(text_of(row, "country", place), part):
            continue
        yield Question(
            text_of(row, "id", place),
            text_of(row, "question", place),
            _answers(row, this, place),
            text_of(row, f"{this}_doc", place),
            _answers(row, that, place),
        )


def _is_of_kind(row: dict[str, Any], kind: str, place: str) -> bool:
    if kind == "factbook":
        return flag_of(row, "clean", place)
    field = text_of(row, "field", place)
    return field != LEFT_OUT and not (kind == "factbook-fields" and field in PEOPLE)


def _answers(row: dict[str, Any], side: str, place: str) -> tuple[str, ...]:
    return distinct([text_of(row, f"{side}_answer", place), *texts_of(row, f"{side}_aliases", place)], place)
