"""Answers of a book that comes in editions: right by the one that is served, or stale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openbook_trainer.eval.intervals import figure


@dataclass(frozen=True)
class Verdict:
    """`right`: names the served edition's answer alone; `stale`: names the other edition's."""

    right: bool
    stale: bool


def names(answer: str, aliases: Sequence[str]) -> bool:
    """Whether an alias stands in the answer as whole words or numbers (`6` is not in `5.6`); case does not matter."""
    return any(re.search(_whole(alias), answer, re.IGNORECASE) for alias in aliases)


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


def _whole(alias: str) -> str:
    before = r"(?<![\w-])" if alias[:1].isdigit() else r"(?<!\w)"
    return rf"{before}(?<!\d[.,]){re.escape(alias)}(?!\w)(?![.,]\d)"
