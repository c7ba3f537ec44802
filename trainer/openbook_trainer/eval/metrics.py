"""Exact match and F1 of short answers: SQuAD's rules, and what NVIDIA's Retro evaluation computes instead.

SQuAD: lower case, ASCII punctuation deleted, a/an/the dropped, white space collapsed; the best over all answers; F1 as
in SQuAD 2.0 where a side is empty after that. NVIDIA (Megatron-LM, tools/retro/text_generation): F1 against the first
answer only, punctuation turned into blanks; exact match over all answers, on predictions that were cleaned or not.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from openbook_core.words import normalise, without_articles

_BLANKED = str.maketrans(dict.fromkeys(string.punctuation, " "))
_MARKERS = ("Answer:", "????  ", "A: ", "A:")  # in the order in which NVIDIA removes them
_END = "<|endoftext|>"


@dataclass(frozen=True)
class Overlap:
    """Precision, recall and F1 of a prediction's words, each in 0..1."""

    precision: float
    recall: float
    f1: float


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 where the prediction is one of the answers after `normalise`, else 0.0. NVIDIA's exact match is the same."""
    return float(normalise(prediction) in {normalise(answer) for answer in answers})


def f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's F1, the best over the answers; against a side without words it is 1.0 where both have none, else 0.0."""
    words = normalise(prediction).split()
    return max(_squad_f1(words, normalise(answer).split()) for answer in answers)


def nvidia_overlap(prediction: str, answer: str) -> Overlap | None:
    """NVIDIA's F1 against one answer (they take the first); None where it is the empty string: not in their mean."""
    if not answer:
        return None
    return _overlap(nvidia_normalise(prediction).split(), nvidia_normalise(answer).split())


def nvidia_normalise(text: str) -> str:
    """`text` as NVIDIA's F1 compares it: punctuation parts words."""
    return without_articles(text.lower().translate(_BLANKED))


def nvidia_clean(prediction: str) -> str:
    """A prediction after the clean-up that NVIDIA's exact match gives the lines of a predictions file."""
    for marker in _MARKERS:
        prediction = prediction.replace(marker, "")
    return normalise(prediction.strip().replace(_END, ""))


def _squad_f1(prediction: list[str], answer: list[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    return _overlap(prediction, answer).f1


def _overlap(prediction: list[str], answer: list[str]) -> Overlap:
    same = (Counter(prediction) & Counter(answer)).total()
    if not same:
        return Overlap(0.0, 0.0, 0.0)
    precision, recall = same / len(prediction), same / len(answer)
    return Overlap(precision, recall, 2 * precision * recall / (precision + recall))
