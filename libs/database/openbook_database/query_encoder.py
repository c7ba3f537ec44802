"""What searching a snapshot by text needs of an encoder, and whether it is the snapshot's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import MismatchError
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
    probes = manifest.probes
    found_ND, stored_ND = encoder.encode(probes.texts).astype(np.float64), probes.vectors_ND.astype(np.float64)
    norms_N = np.linalg.norm(found_ND, axis=1) * np.linalg.norm(stored_ND, axis=1)
    cosine = float(((found_ND * stored_ND).sum(axis=1) / norms_N).min(initial=1.0))
    if not cosine >= probes.min_cosine:
        raise MismatchError(
            f"the encoder has the snapshot's fingerprint but other vectors: lowest cosine on the probe texts {cosine:.6f}, "
            f"at least {probes.min_cosine} is needed",
            field="embedder",
        )
