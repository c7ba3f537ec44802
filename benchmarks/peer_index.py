"""The peer of Search: the index files of the same snapshot, called through Faiss in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.clients.retriever import SearchResult
from openbook_core.errors import OpenbookError

# Faiss adds up in another order than the exact scores of the service.
_SCORE_TOLERANCE = 1e-4


class PeerIndex:
    """Faiss alone, mapped as the shards map it, with all of this process's threads for each shard in turn."""

    def __init__(self, snapshot: Path) -> None:
        files = sorted(snapshot.glob("shard-*/lists.faiss"))
        self._parts = [faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC) for file in files]
        self.dimension, self.rows = int(self._parts[0].d), sum(int(part.ntotal) for part in self._parts)
        index_type: Any = faiss.IndexShards
        self._index = index_type(self.dimension, False, True)  # one after another, ids counted on
        for part in self._parts:
            self._index.add_shard(part)

    def search(self, queries_QD: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and chunk ids [q, k], best first."""
        scores_QK, ids_QK = self._index.search(queries_QD, k)
        return scores_QK, ids_QK

    def agreement(self, theirs: SearchResult, queries_QD: NDArray[np.float32]) -> float:
        """The share of ids in which the service and this agree.

        Raises OpenbookError where any score differs: the two would not have done the same work. Ids may differ where
        chunks tie.
        """
        scores_QK, ids_QK = self.search(queries_QD, theirs.ids.shape[1])
        apart = float(np.abs(scores_QK - theirs.scores).max())
        if not apart <= _SCORE_TOLERANCE:
            raise OpenbookError(f"Search and Faiss in-process give scores that differ by {apart}: one of them is wrong")
        return float((ids_QK == theirs.ids).mean())
