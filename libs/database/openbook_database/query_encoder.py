"""What searching a snapshot by text needs of an encoder, and whether it is the snapshot's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openbook_core.fingerprint import require_equal
from openbook_database.encoder import Encoder
from openbook_database.manifest import Manifest


class QueryEncoder(Encoder, Protocol):
    """An encoder that knows the role of queries, too."""

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of n queries, in order; a function of this list alone."""


def require_encoder_of(manifest: Manifest, encoder: QueryEncoder) -> None:
    """Raise MismatchError, field by field, for another encoder than the snapshot's, and for one of its name that gives
    other vectors for the probe texts."""
    require_equal("embedder", encoder.fingerprint, manifest.contract.embedder, "the encoder given", "the snapshot")
    manifest.probes.require(encoder.encode(manifest.probes.texts), "the encoder given", "the snapshot")
