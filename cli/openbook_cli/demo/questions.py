"""The questions, and how an answer is graded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any


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


def read_rows(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; raises InputError for one that is missing or damaged."""
    from openbook_database.streams import read_lines

    return [json.loads(line) for line in islice(read_lines(path), limit)]


def load_questions(people: Path, editions: Sequence[Path], count: int, documents: int | None) -> list[Question]:
    """Rows marked `clean` about countries that both editions hold, Canada's first, then by a hash of their ids."""
    codes = [{row["id"].rsplit("/", 1)[-1] for row in read_rows(path, documents)} for path in editions]
    both = set.intersection(*codes)
    rows = [row for row in read_rows(people) if row["clean"] and row["id"].split("/")[0] in both]
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


def names(answer: str, aliases: Sequence[str]) -> bool:
    """Whether an alias stands in the answer as whole words; case does not matter."""
    return any(re.search(rf"(?<!\w){re.escape(alias)}(?!\w)", answer, re.IGNORECASE) for alias in aliases)


def grade(answers: Sequence[str], questions: Sequence[Question], *, live: str) -> dict[str, float]:
    """Fractions `matches_old` and `matches_new` while the book `live` ("old" or "new") was served.

    An answer that names the people of both editions counts as the stale one: the edition that was not live.
    """
    pairs = [(names(a, q.old_aliases), names(a, q.new_aliases)) for a, q in zip(answers, questions, strict=True)]
    old = sum(old and not (live == "old" and new) for old, new in pairs)
    new = sum(new and not (live == "new" and old) for old, new in pairs)
    total = max(1, len(pairs))
    return {"matches_old": old / total, "matches_new": new / total, "questions": len(pairs)}
