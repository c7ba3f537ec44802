"""Answers of a book that comes in editions: right by the one that is served, or stale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openbook_trainer.answers import names
from openbook_trainer.eval.intervals import figure


@dataclass(frozen=True)
class Verdict:
    """`right`: names the served edition's answer alone; `stale`: names the other edition's."""

    right: bool
    stale: bool


def judge(answer: str, served: Sequence[str], other: Sequence[str]) -> Verdict:
    """An answer that names both editions' is stale. What of `other` the served answers name too says nothing."""
    stale = names(answer, [alias for alias in other if not any(names(each, [alias]) for each in served)])
    return Verdict(right=not stale and names(answer, served), stale=stale)


def score_verdicts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """`right` and `stale` as fractions with their intervals."""
    return {
        **figure("right", [float(each.right) for each in verdicts]),
        **figure("stale", [float(each.stale) for each in verdicts]),
    }
