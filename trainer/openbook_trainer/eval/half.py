"""Half of a database, answered by a retriever that serves the whole: what is found is filtered by document.

No retriever takes a list of half of all documents as an exclusion, so more is fetched than asked, nearest first, and the
first k of the half are kept. That is what a database of that half would answer (for exact indexes; for others what their
order gives), unless one query's `MOST` nearest chunks hold fewer than k of the half: such queries are counted.

Axes: Q queries, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openbook_core.clients import ChunkTable, SearchResult
from openbook_trainer.neighbours import RetrieverApi

MOST = 1000  # neighbours that a retriever gives for one query
_MORE = 8


class ChunkApi(RetrieverApi, Protocol):
    """What the half needs of `openbook_core.clients.RetrieverClient`."""

    def get_chunks(
        self, database: str, snapshot: str, ids: NDArray[np.int64], *, tokens: bool, documents: bool, timeout_s: float
    ) -> ChunkTable:
        """Chunks by id."""


def in_half(external_id: str) -> bool:
    """Whether a document is of the half: by the last bit of its id's SHA-256, so each with probability one half."""
    return bool(sha256(external_id.encode()).digest()[-1] & 1)


class HalfOfDatabase:
    """A RetrieverApi over the half. `short`: queries of which MOST neighbours were fetched and fewer than k kept."""

    def __init__(self, client: ChunkApi) -> None:
        self._client = client
        self.short = 0

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
        """As the retriever's, with the tokens and documents of what was kept in any case."""
        ids_QK = np.full((len(texts), k), -1, np.int64)
        scores_QK = np.zeros(ids_QK.shape, np.float32)
        pending = list(range(len(texts)))
        count = k
        while True:
            count = min(MOST, _MORE * count)
            found = self._client.search_text(
                database,
                [texts[query] for query in pending],
                count,
                snapshot=snapshot,
                exclude=None if exclude is None else [exclude[query] for query in pending],
                documents=True,
                timeout_s=timeout_s,
            )
            kept = {query: _kept(found, place)[:k] for place, query in enumerate(pending)}
            for place, (query, columns) in enumerate(kept.items()):
                ids_QK[query, : len(columns)] = found.ids[place, columns]
                scores_QK[query, : len(columns)] = found.scores[place, columns]
            # A query whose last neighbour is missing has seen all of the database.
            pending = [
                query
                for query, last in zip(pending, found.ids[:, -1], strict=True)
                if last >= 0 and len(kept[query]) < k
            ]
            if not pending or count == MOST:
                break
        present_QK = ids_QK >= 0
        chunks = ChunkTable(0, np.zeros((0, 0), np.uint32), np.zeros((0, 2), np.uint16), [], [], [])
        if present_QK.any():
            chunks = self._client.get_chunks(
                database, found.snapshot, ids_QK[present_QK], tokens=True, documents=True, timeout_s=timeout_s
            )
        self.short += len(pending)
        row_QK = np.where(present_QK, np.cumsum(present_QK).reshape(ids_QK.shape) - 1, -1)
        return replace(found, ids=ids_QK, scores=scores_QK, chunks=chunks, row_of=row_QK)

    def close(self) -> None:
        self._client.close()


def _kept(found: SearchResult, place: int) -> list[int]:
    """Which of a query's neighbours are of the half, nearest first."""
    rows = enumerate(found.row_of[place].tolist())
    return [column for column, row in rows if row >= 0 and in_half(found.chunks.documents[row].external_id)]
