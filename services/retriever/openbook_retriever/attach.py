"""The embedder that a router attaches: it must be the one that the database was built with.

Two checks, before any vector is used: the fingerprint equals the contract's, field by field; and the probe texts of the
snapshot come out as the vectors that the build stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from openbook_core.clients import EmbedderClient
from openbook_core.errors import AuthenticationError, ForbiddenError, MismatchError, UnavailableError
from openbook_core.fingerprint import require_equal
from openbook_core.security.dial import Dial
from openbook_database.contract import Contract
from openbook_database.manifest import Probes

# After an answer of another embedder: it may have been replaced, by one that is checked anew.
_LOOKS = 2


class EmbedderGate:
    """Queries to vectors, through one embedder; safe to use from several threads."""

    def __init__(self, address: str, dial: Dial | None = None) -> None:
        self._address = address
        self._client = EmbedderClient(address, dial)
        self._lock = Lock()
        self._probed: set[tuple[str, bytes]] = set()

    def embed(
        self, database: str, texts: Sequence[str], contract: Contract, probes: Probes, timeout_s: float
    ) -> NDArray[np.float32]:
        """Vectors [q, d] of q queries.

        Raises MismatchError naming both sides where the embedder is not the database's, and UnavailableError where it
        cannot be reached.
        """
        try:
            for _ in range(_LOOKS):
                self._check_probes(database, contract, probes, timeout_s)
                result = self._client.embed(list(texts), "query", timeout_s=timeout_s)
                if result.fingerprint_digest == contract.embedder.digest:
                    return result.vectors
                self._forget(contract)
        except UnavailableError as error:
            raise UnavailableError(f"the embedder at {self._address} does not answer: {error}") from error
        except (AuthenticationError, ForbiddenError) as error:
            raise UnavailableError(f"the embedder at {self._address} refuses this router's token: {error}") from error
        raise MismatchError(
            f"the embedder at {self._address} says that it is the one of database {database!r} "
            f"({contract.embedder.digest[:12]}) but answers as {result.fingerprint_digest[:12]}: do several processes "
            "share the address?",
            field="embedder",
        )

    def close(self) -> None:
        self._client.close()

    def _check_fingerprint(self, database: str, contract: Contract, timeout_s: float) -> None:
        require_equal(
            "embedder",
            contract.embedder,
            self._client.info(timeout_s=timeout_s).fingerprint,
            f"database {database!r}",
            f"the embedder at {self._address}",
        )

    def _check_probes(self, database: str, contract: Contract, probes: Probes, timeout_s: float) -> None:
        key = (contract.embedder.digest, probes.vectors_ND.tobytes())
        with self._lock:
            if key in self._probed:
                return
        self._check_fingerprint(database, contract, timeout_s)
        found_ND = self._client.embed(list(probes.texts), "passage", timeout_s=timeout_s).vectors
        probes.require(found_ND, f"the embedder at {self._address}", f"database {database!r}")
        with self._lock:
            self._probed.add(key)

    def _forget(self, contract: Contract) -> None:
        with self._lock:
            self._probed = {key for key in self._probed if key[0] != contract.embedder.digest}
