"""What a build needs of an embedder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

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
        """Compute type, "float32" or "bfloat16", with the backend before it where that is not torch: "onnx-float32"."""

    @property
    def arithmetic(self) -> Mapping[str, str | int]:
        """What else the last bits of the vectors follow from, such as the kind of processor. Empty: the same everywhere, or
        nobody knows, as behind a network."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of n passages, in order."""


@runtime_checkable
class AheadEncoder(Encoder, Protocol):
    """An encoder that works on the next lists while the caller is busy with the last: one behind a network."""

    def encode_all(self, lists: Iterable[Sequence[str]]) -> Iterator[NDArray[np.float32]]:
        """`encode` of each list, in order; may pull a few lists ahead."""


def encode_all(encoder: Encoder, lists: Iterable[Sequence[str]]) -> Iterator[NDArray[np.float32]]:
    """`encode` of each list, in order, ahead of the caller where the encoder can."""
    return encoder.encode_all(lists) if isinstance(encoder, AheadEncoder) else map(encoder.encode, lists)
