"""What a build needs of an embedder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openbook_core.fingerprint import Fingerprint


class Encoder(Protocol):
    """Passages to vectors. The result for a list is a function of that list alone: no batching with other callers."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Architecture, weights, tokenizer, pooling, normalisation, prompts; not the compute type."""

    @property
    def dimension(self) -> int:
        """Elements of each vector (d)."""

    @property
    def max_tokens(self) -> int:
        """Longest passage in the encoder's own tokens; longer ones are cut."""

    @property
    def dtype(self) -> str:
        """Compute type, "float32" or "bfloat16"."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of n passages, in order."""
