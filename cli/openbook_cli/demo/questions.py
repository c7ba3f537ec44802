"""The questions, and how an answer is graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

from openbook_trainer.eval.editions import judge
from openbook_trainer.rows import read_rows


@dataclass(frozen=True)
class Question:
    """One question with the answers of both editions and their aliases."""

    id: str
    country: str
    text: str
    old_answer: str
    new_answer: str
    old_aliases: tuple[str, ...]
    new_aliases: tuple[str, ...]


def load_questions(people: Path, editions: Sequence[Path], count: int, documents: int | None) -> list[Question]:
    """Rows marked `clean` about countries that both editions hold, Canada's first, then by a hash of their ids."""
    codes = [{row["id"].rsplit("/", 1)[-1] for _, row in islice(read_rows(path), documents)} for path in editions]
    both = set.intersection(*codes)
    rows = [row for _, row in read_rows(people) if row["clean"] and row["id"].split("/")[0] in both]
    rows.sort(key=lambda row: (row["country"] != "Canada", sha256(row["id"].encode()).hexdigest()))
    return [
        Question(
            id=row["id"],
            country=row["country"],
            text=row["question"],
            old_answer=row["old_answer"],
            new_answer=row["new_answer"],
            old_aliases=tuple(row["old_aliases"]),
            new_aliases=tuple(row["new_aliases"]),
        )
        for row in rows[:count]
    ]


def grade(answers: Sequence[str], questions: Sequence[Question], *, live: str) -> dict[str, float]:
    """Fractions `matches_old` and `matches_new` while the book `live` ("old" or "new") was served; see `judge`."""
    verdicts = [
        judge(answer, q.old_aliases, q.new_aliases) if live == "old" else judge(answer, q.new_aliases, q.old_aliases)
        for answer, q in zip(answers, questions, strict=True)
    ]
    total = max(1, len(verdicts))
    right, stale = (sum(getattr(each, name) for each in verdicts) / total for name in ("right", "stale"))
    old, new = (right, stale) if live == "old" else (stale, right)
    return {"matches_old": old, "matches_new": new, "questions": len(verdicts)}
