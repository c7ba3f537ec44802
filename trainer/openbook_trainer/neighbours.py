"""Neighbours for batches: the interface, and the live retriever behind it.

Axes: B batch, L chunks of a sequence, K neighbours, R tokens of a neighbour (2m: chunk, then continuation).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from openbook_core.clients import RetrieverClient, SearchResult
from openbook_core.errors import (
    ConfigError,
    DeadlineError,
    MismatchError,
    OpenbookError,
    OverloadedError,
    Reason,
    UnavailableError,
)
from openbook_core.fingerprint import Fingerprint, require_equal
from openbook_core.tokenizer import Tokenizer
from openbook_model.config import RetroConfig
from openbook_trainer.config import RetrievalConfig
from openbook_trainer.data import Batch, Query

Result = TypeVar("Result")

_RETURNED_PER_SUCCESS = 0.1
_PROBED_DOCUMENTS = 256
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Neighbors:
    """Token ids and used lengths of a batch's neighbours; length 0 is a missing one. `masked`: the source failed."""

    ids_BLKR: NDArray[np.int64]
    lengths_BLK: NDArray[np.int64]
    masked: bool = False

    def narrowed(self, k: int, r: int) -> Neighbors:
        """The first k of each chunk, of at most r tokens."""
        ids_BLKR, lengths_BLK = self.ids_BLKR[:, :, :k, :r], self.lengths_BLK[:, :, :k]
        return Neighbors(np.ascontiguousarray(ids_BLKR), np.minimum(lengths_BLK, r), self.masked)

    def padding(self, config: RetroConfig) -> tuple[NDArray[np.int64] | None, bool]:
        """What a model is to be told of padding: the lengths, None where all neighbours are whole, and `all_or_none`.

        Decided here, where the lengths are in the processor's memory: to ask a GPU would be to wait for it.
        """
        attended = config.neighbor_padding == "attended"
        whole_BLK = self.lengths_BLK > 0 if attended else self.lengths_BLK == self.ids_BLKR.shape[-1]
        if whole_BLK.all():
            return None, True
        all_or_none_BL = whole_BLK.all(axis=-1) | ~self.lengths_BLK.any(axis=-1)
        return self.lengths_BLK, bool(all_or_none_BL.all())


class NeighborSource(Protocol):
    """Where neighbours come from; called from one thread at a time."""

    def fetch(self, batch: Batch) -> Neighbors:
        """Neighbours for every query of the batch; chunks without a query get none. Raises OpenbookError."""

    def close(self) -> None:
        """Give connections back."""


class NoSource:
    """The neighbours of a model that reads none."""

    def fetch(self, batch: Batch) -> Neighbors:
        """Of every chunk 0 neighbours."""
        shape = (len(batch.queries), len(batch.queries[0]), 0)
        return Neighbors(np.zeros((*shape, 1), np.int64), np.zeros(shape, np.int64))

    def close(self) -> None:
        """Nothing is held open."""


class RetrieverApi(Protocol):
    """What the live source needs of `openbook_core.clients.RetrieverClient`."""

    def search_text(
        self,
        database: str,
        texts: Sequence[str],
        k: int,
        *,
        snapshot: str = "",
        exclude: Sequence[Sequence[str]] | None = None,
        tokens: bool = False,
        documents: bool = False,
        timeout_s: float = 30.0,
    ) -> SearchResult:
        """k nearest chunks of each text."""

    def close(self) -> None:
        """Close the channel."""


def pin_snapshot(config: RetrievalConfig, snapshot: str, tokenizer: Tokenizer, chunk_length: int) -> str:
    """The snapshot that the run uses, all through: `snapshot`, or the live one where that is "".

    Raises UnavailableError where no retriever answers, and MismatchError where the database has another tokenizer or
    chunk length than the run.
    """
    client = RetrieverClient(config.address)
    try:
        reply = client.describe(config.database, snapshot)
    except UnavailableError as error:
        raise _not_up(config, error) from error
    finally:
        client.close()
    contract = json.loads(reply.contract_json)
    require_equal(
        "tokenizer",
        tokenizer.fingerprint,
        Fingerprint(contract["tokenizer"]),
        "corpus.tokenizer",
        f"database {config.database!r}",
    )
    if contract["chunk_length"] != chunk_length:
        raise MismatchError(
            f"model.chunk_length is {chunk_length}, database {config.database!r} has chunks of "
            f"{contract['chunk_length']} tokens; they must be equal",
            field="model.chunk_length",
            reason=Reason.CONTRACT_MISMATCH,
        )
    return str(reply.snapshot)


class Retries:
    """Repeats failed calls while a budget lasts: each retry costs 1, each success returns 0.1, up to the whole."""

    def __init__(self, budget: float) -> None:
        self._whole = self._budget = budget

    def call(self, function: Callable[[], Result]) -> Result:
        """Raises what the last try raised: UnavailableError, DeadlineError or OverloadedError; others at once."""
        delay = 0.1
        while True:
            try:
                result = function()
            except (UnavailableError, DeadlineError, OverloadedError) as error:
                if self._budget < 1.0:
                    raise
                self._budget -= 1.0
                logger.warning("retrieval failed and is tried again, budget %.1f: %s", self._budget, error)
                time.sleep(error.retry_after_s or delay)
                delay = min(2 * delay, 5.0)
                continue
            self._budget = min(self._whole, self._budget + _RETURNED_PER_SUCCESS)
            return result


class LiveSource:
    """The running retriever: one SearchText per batch, always of one pinned snapshot."""

    def __init__(self, client: RetrieverApi, config: RetrievalConfig, snapshot: str, k: int, chunk_length: int) -> None:
        self._client, self._config, self._snapshot = client, config, snapshot
        self._k, self._length = k, 2 * chunk_length
        self._retries = Retries(config.retry_budget)

    def close(self) -> None:
        self._client.close()

    def check_exclusions(self, document_ids: Sequence[str]) -> None:
        """Raise ConfigError where the snapshot holds none of these documents, so that no exclusion would match."""
        if not self._config.exclude_own_document:
            return
        ids = list(dict.fromkeys(document_ids))
        for start in range(0, len(ids), _PROBED_DOCUMENTS):
            asked = ids[start : start + _PROBED_DOCUMENTS]
            unknown = self._search(["probe"], [asked], k=1).unknown_exclusions
            if unknown < len(asked):
                if start or unknown:
                    seen = start + len(asked)
                    logger.warning("%d of %d documents of the corpus are not in the database", start + unknown, seen)
                return
        raise ConfigError(
            f"none of {len(ids)} documents of the corpus (first {ids[0]!r}) is in snapshot {self._snapshot[:12]} of database "
            f"{self._config.database!r}, so a sequence's own text could come back as its neighbour. Train on the documents "
            "that the database was built from, or set retrieval.exclude_own_document=false if the two share none",
            field="retrieval.exclude_own_document",
        )

    def fetch(self, batch: Batch) -> Neighbors:
        """As NeighborSource; after the retry budget, raises (policy "stop") or returns no neighbours ("mask")."""
        places = [(b, c) for b, row in enumerate(batch.queries) for c, query in enumerate(row) if query is not None]
        shape = (len(batch.queries), len(batch.queries[0]), self._k)
        neighbors = Neighbors(np.zeros((*shape, self._length), np.int64), np.zeros(shape, np.int64))
        if not places:
            return neighbors
        queries = [query for row in batch.queries for query in row if query is not None]
        exclude = [[query.document_id] for query in queries] if self._config.exclude_own_document else None
        try:
            result = self._search([query.text for query in queries], exclude, k=self._k)
        except (UnavailableError, DeadlineError, OverloadedError) as error:
            if self._config.on_failure == "stop":
                raise
            logger.warning("a batch is trained without neighbours: %s", error)
            return Neighbors(neighbors.ids_BLKR, neighbors.lengths_BLK, masked=True)
        self._fill(neighbors, places, queries, result)
        return neighbors

    def _search(self, texts: Sequence[str], exclude: Sequence[Sequence[str]] | None, *, k: int) -> SearchResult:
        config = self._config
        try:
            result = self._retries.call(
                lambda: self._client.search_text(
                    config.database,
                    texts,
                    k,
                    snapshot=self._snapshot,
                    exclude=exclude,
                    tokens=True,
                    documents=True,
                    timeout_s=config.deadline_s,
                )
            )
        except UnavailableError as error:
            raise _not_up(config, error) from error
        if result.snapshot != self._snapshot:
            raise OpenbookError(
                f"the retriever answered from snapshot {result.snapshot}, the run is pinned to {self._snapshot}",
                reason=Reason.SNAPSHOT_MIX,
            )
        return result

    def _fill(
        self, neighbors: Neighbors, places: list[tuple[int, int]], queries: list[Query], result: SearchResult
    ) -> None:
        chunks = result.chunks
        assert chunks.tokens is not None, "tokens were asked for"
        assert chunks.lengths is not None, "tokens were asked for"
        lengths_N = chunks.lengths.astype(np.int64).sum(axis=1)
        for (b, c), query, rows_K in zip(places, queries, result.row_of.tolist(), strict=True):
            found = [row for row in rows_K if row >= 0]
            for place, row in enumerate(found):
                document = chunks.documents[row].external_id
                if self._config.exclude_own_document and document == query.document_id:
                    raise OpenbookError(f"the retriever returned document {document!r} to itself, which was excluded")
                neighbors.ids_BLKR[b, c, place] = chunks.tokens[row]
                neighbors.lengths_BLK[b, c, place] = lengths_N[row]


def _not_up(config: RetrievalConfig, error: UnavailableError) -> UnavailableError:
    return UnavailableError(
        f"no neighbours from the retriever at {config.address} ({error.message}); start it "
        "(openbook serve retriever), or correct retrieval.address",
        field="retrieval.address",
    )
