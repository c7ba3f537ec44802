"""Losses to figures with standard errors, over clusters of tokens that count as independent of one another.

Axes: C clusters, N tokens of a document.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openbook_trainer.eval.intervals import Ratio, ratio
from openbook_trainer.eval.texts import MeasuredText
from openbook_trainer.eval.windows import Sliding

Figures = dict[str, Any]


@dataclass(frozen=True)
class Clusters:
    """Predicted tokens, bytes and words [C] of the clusters; `ends[i]`: where document i's clusters end in its N - 1
    predicted tokens. `words_C` is None where words are not counted."""

    by: Literal["document", "block"]
    description: str
    ends: list[list[int]]
    tokens_C: NDArray[np.int64]
    bytes_C: NDArray[np.int64]
    words_C: NDArray[np.int64] | None

    def totals(self, losses: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Nats [C] of each cluster, from those [N - 1] of each document's predicted tokens."""
        sums = [np.add.reduceat(nats, [0, *ends[:-1]]) for nats, ends in zip(losses, self.ends, strict=True)]
        return np.concatenate(sums)

    def figures(self, totals_C: NDArray[np.float64]) -> Figures:
        """nats_per_token, perplexity, bits_per_byte and word_perplexity, each with its `_standard_error`.

        Perplexities' errors are those of their logarithms times their value (delta method). word_perplexity is None
        where words are not counted, there are none, or it is beyond a double.
        """
        nats = ratio(totals_C, self.tokens_C)
        words = self.words_C
        per_word = None if words is None or not words.any() else ratio(totals_C, words)
        bits = ratio(totals_C / math.log(2), self.bytes_C)
        return {
            **as_figure("nats_per_token", nats),
            **as_figure("perplexity", _exponential(nats)),
            **as_figure("bits_per_byte", bits),
            **as_figure("word_perplexity", None if per_word is None else _exponential(per_word)),
        }

    def difference(self, totals_C: NDArray[np.float64], others_C: NDArray[np.float64]) -> Figures:
        """Nats per token of one measurement less those of another of the same tokens; the error is the paired one."""
        return as_figure("nats_per_token", ratio(totals_C - others_C, self.tokens_C))


def cluster(texts: Sequence[MeasuredText], sliding: Sliding, *, words: bool) -> Clusters:
    """A document is a cluster; where there is one only, the tokens that one window predicts are."""
    by: Literal["document", "block"] = "document" if len(texts) > 1 else "block"
    if by == "document":
        ends = [[len(text.tokens_N) - 1] for text in texts]
        description = f"clustered by document ({len(texts)})"
    else:
        ends = [[window.first + window.inputs for window in sliding.windows(len(texts[0].tokens_N))]]
        description = f"clustered by block of {sliding.stride} predicted tokens ({len(ends[0])})"
    spans = [
        (text, first, end)
        for text, its_ends in zip(texts, ends, strict=True)
        for first, end in zip([0, *its_ends[:-1]], its_ends, strict=True)
    ]
    return Clusters(
        by=by,
        description=description,
        ends=ends,
        tokens_C=np.array([end - first for _, first, end in spans]),
        bytes_C=np.array([text.bytes_of(first + 1, end + 1) for text, first, end in spans]),
        words_C=np.array([text.words_of(first + 1, end + 1) for text, first, end in spans]) if words else None,
    )


def _exponential(logarithm: Ratio) -> Ratio | None:
    try:
        value = math.exp(logarithm.value)
    except OverflowError:
        return None
    error = logarithm.standard_error
    return Ratio(value, None if error is None else value * error)


def as_figure(name: str, found: Ratio | None) -> Figures:
    """`name` and `name_standard_error` as they stand in figures; both None for nothing."""
    return {
        name: None if found is None else found.value,
        f"{name}_standard_error": None if found is None else found.standard_error,
    }
