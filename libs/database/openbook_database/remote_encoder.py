"""The encoder of a build behind a network: an embedder service, each block in batches of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from openbook_core.clients import EmbedderClient, EmbedResult
from openbook_core.errors import MismatchError, OpenbookError
from openbook_core.fingerprint import Fingerprint


class RemoteEncoder:
    """An `encoder.AheadEncoder` over EmbedStream; what it says of itself was asked at the start.

    Raises UnavailableError where nobody answers, MismatchError where the service at the address became another one.
    """

    def __init__(self, client: EmbedderClient) -> None:
        self._client = client
        info = client.info()
        self.fingerprint: Fingerprint = info.fingerprint
        self.dimension = info.dimension
        self.max_tokens = info.max_tokens
        self.dtype = info.dtype
        self.arithmetic: Mapping[str, str | int] = {}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of n passages, in order."""
        return next(self.encode_all([texts]))

    def encode_all(self, lists: Iterable[Sequence[str]]) -> Iterator[NDArray[np.float32]]:
        """`encode` of each list, in order; a few lists are pulled ahead."""
        for outcome in self._client.embed_stream(lists, "passage", exclusive=True):
            if isinstance(outcome, OpenbookError):
                raise outcome
            self._require_same(outcome)
            yield outcome.vectors

    def _require_same(self, result: EmbedResult) -> None:
        if (result.fingerprint_digest, result.dtype) != (self.fingerprint.digest, self.dtype):
            raise MismatchError(
                f"the embedder at {self._client.address} was {self.fingerprint.digest[:12]} in {self.dtype} when the build "
                f"began and is {result.fingerprint_digest[:12]} in {result.dtype}; start the one that the build began with "
                "and run the same command again",
                field="embedder",
            )
