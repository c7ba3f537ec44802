"""What the codes of an IVF index stand for, in numpy: the vectors that scores are defined over (docs/adr/0003).

Faiss' own decoders give the same up to rounding; these give the same bits on every processor.

Axes: N rows, E dimension of the index, B bytes of a code.
"""

from __future__ import annotations

from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import CorruptError
from openbook_database.scoring import tree_sum


class Codec(Protocol):
    """Codes to vectors. `reach`: bound on the norm of a decoded vector less its centroid, None where only codes tell."""

    reach: float | None

    def decode(self, codes_NB: NDArray[np.uint8], centroids_NE: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors [n, e], or [n, e + 1] with an offset of the score as last element."""


class FlatCodec:
    """Vectors as they are."""

    reach: float | None = None

    def decode(self, codes_NB: NDArray[np.uint8], centroids_NE: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(codes_NB).view("<f4")


class ScalarCodec:
    """One byte for each element of the residual, between the least and the largest value seen in training."""

    def __init__(self, index: Any) -> None:
        trained = faiss.vector_to_array(index.sq.trained).astype(np.float64).reshape(2, index.d)
        self._least_E, self._range_E = trained
        self.reach: float | None = float(np.linalg.norm(np.abs(self._least_E) + np.abs(self._range_E)))

    def decode(self, codes_NB: NDArray[np.uint8], centroids_NE: NDArray[np.float32]) -> NDArray[np.float32]:
        residual_NE = self._least_E + self._range_E * ((codes_NB + 0.5) / 255)
        return (residual_NE + centroids_NE).astype(np.float32)


class ProductCodec:
    """One of 256 codewords for each part of the residual (Jegou et al. 2011)."""

    def __init__(self, index: Any) -> None:
        pq = index.pq
        self._codewords = faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)
        largest = np.square(self._codewords.astype(np.float64)).sum(axis=2).max(axis=1)
        self.reach: float | None = float(np.sqrt(largest.sum()))

    def decode(self, codes_NB: NDArray[np.uint8], centroids_NE: NDArray[np.float32]) -> NDArray[np.float32]:
        residual_NPS = self._codewords[np.arange(codes_NB.shape[1]), codes_NB]
        residual_NE = residual_NPS.reshape(len(codes_NB), -1).astype(np.float64)
        return (residual_NE + centroids_NE).astype(np.float32)


class BitCodec:
    """RaBitQ (Gao and Long 2024, arXiv:2405.12497): the sign of each element of the residual, and two factors.

    With residual r = o - c, signs s and p = |r|^2 sqrt(d) / |r|_1 the estimate of <q, o> is
    <q, c + p s / sqrt(d)> + <c, o - c - p s / sqrt(d)>: a decoded vector and an offset that does not depend on the query.
    """

    reach: float | None = None

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension

    def factors(self, codes_NB: NDArray[np.uint8]) -> NDArray[np.float64]:
        """|r|^2 - |o|^2 and p of each row, [n, 2]."""
        tail = np.ascontiguousarray(codes_NB[:, -(-self._dimension // 8) :])
        return tail.view("<f4").astype(np.float64)

    def decode(self, codes_NB: NDArray[np.uint8], centroids_NE: NDArray[np.float32]) -> NDArray[np.float32]:
        bits_NE = np.unpackbits(codes_NB, axis=1, count=self._dimension, bitorder="little")
        norms_N, lengths_N = self.factors(codes_NB).T
        centres_NE = centroids_NE.astype(np.float64)
        added_NE = (bits_NE * 2.0 - 1.0) * (lengths_N / np.sqrt(self._dimension))[:, None]
        offsets_N = -0.5 * (norms_N + tree_sum(np.square(centres_NE))) - tree_sum(centres_NE * added_NE)
        return np.concatenate([centres_NE + added_NE, offsets_N[:, None]], axis=1).astype(np.float32)


def codec_of(index: Any) -> Codec:
    """The codec of a Faiss IVF index."""
    if isinstance(index, faiss.IndexIVFFlat):
        return FlatCodec()
    if isinstance(index, faiss.IndexIVFScalarQuantizer):
        return ScalarCodec(index)
    if isinstance(index, faiss.IndexIVFPQ):
        return ProductCodec(index)
    if isinstance(index, faiss.IndexIVFRaBitQ):
        return BitCodec(index.d)
    raise CorruptError(f"a quantiser of type {type(index).__name__} is not known")
