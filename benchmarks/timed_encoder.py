"""The encoder of a build with a clock in it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openbook_embedder.engine import EncoderEngine


class TimedEncoder(EncoderEngine):
    """Seconds since `reset`: `encode_s` in `encode` as the build calls it, `network_s` of them in the network itself."""

    encode_s = network_s = 0.0

    def reset(self) -> None:
        self.encode_s = self.network_s = 0.0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        start = time.perf_counter()
        vectors_ND = super().encode(texts)
        self.encode_s += time.perf_counter() - start
        return vectors_ND

    def encode_ids(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        start = time.perf_counter()
        vectors_ND = super().encode_ids(ids)
        self.network_s += time.perf_counter() - start
        return vectors_ND
