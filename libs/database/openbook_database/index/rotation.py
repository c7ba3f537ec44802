"""A linear map whose result for a row has the same bits in any batch, on any number of threads and any processor.

Both factors are rounded to whole numbers of so few bits that every sum of products is exact in float64, so that the
order in which a BLAS adds them does not matter. The rounding is a function of the row alone.

Axes: N rows, D dimension, E dimension after the rotation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STEP = 1 << 14


class Rotation:
    """x -> A x for a matrix A [e, d]; relative error about 2^-20 for d up to 8192."""

    def __init__(self, matrix_ED: NDArray[np.float32]) -> None:
        dimension = matrix_ED.shape[1]
        self._bits = (53 - int(np.ceil(np.log2(dimension)))) // 2
        exponent = int(np.frexp(np.abs(matrix_ED).max())[1]) - self._bits
        self._whole_DE = np.rint(np.ldexp(matrix_ED.astype(np.float64), -exponent)).T.copy()
        self._exponent = exponent

    def __call__(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rotated rows [n, e], float32."""
        rotated_NE = np.empty((len(vectors_ND), self._whole_DE.shape[1]), dtype=np.float32)
        for start in range(0, len(vectors_ND), _STEP):
            block_ND = vectors_ND[start : start + _STEP].astype(np.float64)
            exponents_N = np.frexp(np.abs(block_ND).max(axis=1))[1][:, None] - self._bits
            sums_NE = np.rint(np.ldexp(block_ND, -exponents_N)) @ self._whole_DE
            rotated_NE[start : start + _STEP] = np.ldexp(sums_NE, exponents_N + self._exponent) + 0.0
        return rotated_NE
