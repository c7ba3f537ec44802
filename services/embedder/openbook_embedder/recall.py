"""How much of a search another way of computing changes. Axes: N texts, D elements of a vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openbook_core.probes import lowest_cosine
from openbook_embedder.exported import Effect

if TYPE_CHECKING:
    from openbook_embedder.engine import EncoderEngine

TOP = 10


def measure_effect(exact: EncoderEngine, other: EncoderEngine, texts: Sequence[str]) -> Effect:
    """`texts` are distinct passages, each of them searched for among all others, as `exact` and as `other` embed them."""
    return effect_against(exact, exact.encode(texts), other, texts)


def effect_against(
    exact: EncoderEngine, exact_ND: NDArray[np.float32], other: EncoderEngine, texts: Sequence[str]
) -> Effect:
    """`measure_effect` where the vectors of `exact` are there already."""
    return Effect(
        texts=len(texts),
        overlap=top_overlap(exact_ND, other.encode(texts), TOP),
        probe_cosine=lowest_cosine(exact.probe_vectors, other.probe_vectors),
    )


def top_overlap(exact_ND: NDArray[np.float32], other_ND: NDArray[np.float32], top: int) -> float:
    """Mean share of the `top` rows with the largest inner product with a row, itself left out, that are the same."""
    exact_NK, other_NK = _nearest(exact_ND, top), _nearest(other_ND, top)
    kept = [len(np.intersect1d(left, right)) for left, right in zip(exact_NK, other_NK, strict=True)]
    return float(np.mean(kept) / exact_NK.shape[1])


def _nearest(vectors_ND: NDArray[np.float32], top: int) -> NDArray[np.int64]:
    scores_NN = vectors_ND @ vectors_ND.T
    np.fill_diagonal(scores_NN, -np.inf)
    return np.argsort(-scores_NN, axis=1, kind="stable")[:, : min(top, len(vectors_ND) - 1)]
