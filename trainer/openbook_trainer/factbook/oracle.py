"""The right passage of each question as the database has it, and a wrong one beside it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from openbook_trainer.factbook.passages import Count, cut
from openbook_trainer.factbook.questions import Asked, place_of
from openbook_trainer.parts import PEOPLE


class OraclePassages:
    """Of the questions of one edition. A wrong passage is the right one of the same question about another country."""

    def __init__(self, rows: Sequence[Asked], count: Count, limit: int) -> None:
        self._gold = {row.id: gold for row in rows if (gold := _gold(row, count, limit)) is not None}
        self._rows = [row for row in rows if row.id in self._gold]

    def holds(self, row: Asked) -> bool:
        """Whether a passage has the whole answer; a cut between two may have parted it."""
        return row.id in self._gold

    def passages(self, random: Random, row: Asked, k: int) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
        """k passages in any order, the place of the right one among them, and what the others would answer."""
        others = [each for each in self._rows if each.field == row.field and each.country != row.country]
        chosen = [row, *random.sample(others, k - 1)]
        order = random.sample(range(k), k)
        wrong = tuple(each.answer for each in chosen[1:])
        return tuple(self._gold[chosen[place].id] for place in order), order.index(0), wrong


def _gold(row: Asked, count: Count, limit: int) -> str | None:
    """The line's passage that has the answer in the right part: for people, after the name of the office."""
    office = f"{row.field}: " if row.field in PEOPLE else ""
    for passage in cut(row.line, count, limit):
        if place_of(row.answer, passage[passage.index(office) :] if office in passage else ""):
            return passage
    return None
