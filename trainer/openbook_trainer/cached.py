"""Neighbours from a cache that `openbook db neighbours` made, and their tokens from its snapshot's folder: no network.

A sequence whose first tokens are dropped gets the neighbours of its whole first chunk, where the live retriever is asked
about what is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ConfigError, OpenbookError
from openbook_core.fingerprint import require_equal
from openbook_core.tokenizer import Tokenizer
from openbook_database.manifest import Manifest
from openbook_database.neighbours.cache import IDS, NeighbourCache
from openbook_database.neighbours.corpus import token_digest
from openbook_database.snapshot import Snapshot
from openbook_trainer.data import Batch, ChunkedCorpus, Query
from openbook_trainer.neighbours import Neighbors


def snapshot_of(folder: Path, wanted: str, tokenizer: Tokenizer, chunk_length: int) -> str:
    """Id of the snapshot in `folder`. Raises MismatchError for another tokenizer than the run's, ConfigError for
    another chunk length, or where `wanted` is not "" and another snapshot."""
    manifest = Manifest.read(folder)
    require_equal(
        "tokenizer", tokenizer.fingerprint, manifest.contract.tokenizer, "corpus.tokenizer", f"the snapshot in {folder}"
    )
    if manifest.contract.chunk_length != chunk_length:
        raise ConfigError(
            f"model.chunk_length is {chunk_length}, the snapshot in {folder} has chunks of "
            f"{manifest.contract.chunk_length} tokens; they must be equal",
            field="model.chunk_length",
        )
    if wanted not in ("", manifest.snapshot_id):
        raise ConfigError(
            f"retrieval.folder: {folder} holds snapshot {manifest.snapshot_id}, the run is of {wanted}",
            field="retrieval.folder",
        )
    return manifest.snapshot_id


class CachedSource:
    """A `neighbours.NeighborSource` over a cache. Axes as there."""

    def __init__(
        self, cache: Path, folder: Path, k: int, corpora: Sequence[ChunkedCorpus], *, exclude_own: bool = True
    ) -> None:
        """Raises MismatchError naming the snapshot, or the document of a corpus, for which the cache was not made, and
        ConfigError where it holds fewer than k neighbours, or, with `exclude_own`, where the snapshot has no document of
        the corpora under its id, so that none was left out for itself."""
        self._snapshot = Snapshot.open(folder)
        self._cache = NeighbourCache.open(cache, snapshot_id=self._snapshot.id)
        if k > self._cache.k:
            raise ConfigError(
                f"{cache} holds {self._cache.k} neighbours of each chunk, model.num_neighbors is {k}",
                field="model.num_neighbors",
            )
        self._k = k
        self.digest = str(self._cache.header["files"][IDS])
        self._first = {
            name: self._cache.first_chunk(name, token_digest(tokens))
            for each in corpora
            for name, tokens in each.documents()
        }
        numbers_D = self._snapshot.documents.find(list(self._first))
        self._own = dict(zip(self._first, numbers_D.tolist(), strict=True)) if exclude_own else None
        if exclude_own and not (numbers_D >= 0).any():
            raise ConfigError(
                f"none of {len(self._first)} documents of the corpus is in snapshot {self._snapshot.id[:12]}, so a "
                "sequence's own text could be its neighbour. Train on the documents that the database was built from, or "
                "set retrieval.exclude_own_document=false if the two share none",
                field="retrieval.exclude_own_document",
            )

    def close(self) -> None:
        """Nothing is held open but mapped files."""

    def fetch(self, batch: Batch) -> Neighbors:
        """Neighbours for every query of the batch; chunks without a query get none.

        Raises OpenbookError where one is of the query's own document, unless those are allowed."""
        width = 2 * self._snapshot.manifest.contract.chunk_length
        shape = (len(batch.queries), len(batch.queries[0]), self._k)
        found = Neighbors(np.zeros((*shape, width), np.int64), np.zeros(shape, np.int64))
        ids_BLK = np.full(shape, -1, np.int64)
        for b, row in enumerate(batch.queries):
            for place, query in enumerate(row):
                if query is not None:
                    ids_K = self._cache.ids_CK[self._first[query.document_id] + query.chunk, : self._k]
                    self._require_others(query, ids_K)
                    ids_BLK[b, place] = ids_K
        for shard in self._snapshot.shards:
            held_BLK = shard.holds(ids_BLK)
            tokens_NR, lengths_N2 = shard.tokens(ids_BLK[held_BLK])
            found.ids_BLKR[held_BLK] = tokens_NR
            found.lengths_BLK[held_BLK] = lengths_N2.astype(np.int64).sum(axis=1)
        return found

    def _require_others(self, query: Query, ids_K: NDArray[np.int64]) -> None:
        if self._own is None or (own := self._own[query.document_id]) < 0:
            return
        if (self._snapshot.documents.of_rows(ids_K[ids_K >= 0]) == own).any():
            raise OpenbookError(
                f"the neighbour cache gives document {query.document_id!r} to itself; make it anew (openbook db neighbours)"
            )
