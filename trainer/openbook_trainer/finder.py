"""Neighbours of texts that are no corpus: prompts and replies in evaluation, packed examples in tuning.

Axes: L chunks, K neighbours, R tokens of a neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from openbook_core.clients import RetrieverClient
from openbook_core.tokenizer import Tokenizer
from openbook_model import Neighbors, RetroConfig
from openbook_trainer.config import RetrievalConfig
from openbook_trainer.data import Batch, Query
from openbook_trainer.neighbours import LiveSource, pin_snapshot

_NOTHING = np.zeros((1, 1), np.int64)

# Texts of chunks to their neighbours, ids [L, K, R] and lengths [L, K]; a blank text has none.
FindNeighbors = Callable[[Sequence[str]], Neighbors]


class NeighborFinder:
    """A FindNeighbors that asks the retriever, always for one snapshot; errors and retries as LiveSource's.

    It gives what the model reads: `num_neighbors`, each no longer than `neighbor_length`.
    """

    def __init__(
        self,
        address: str,
        database: str,
        snapshot: str,
        model: RetroConfig,
        tokenizer: Tokenizer,
        deadline_s: float = 30.0,
    ) -> None:
        """Raises MismatchError for a database of another tokenizer or chunk length."""
        self._chunk_length, self._read = model.chunk_length, (model.num_neighbors, model.neighbor_length)
        settings = RetrievalConfig(
            address=address, database=database, exclude_own_document=False, deadline_s=deadline_s
        )
        pinned = pin_snapshot(settings, snapshot, tokenizer, model.chunk_length)
        client = RetrieverClient(address)
        self._source = LiveSource(client, settings, pinned, model.num_neighbors, model.chunk_length)

    def __call__(self, texts: Sequence[str]) -> Neighbors:
        row = tuple(Query(text, "") if text.strip() else None for text in texts)
        found = self._source.fetch(Batch(_NOTHING, _NOTHING, None, (self._chunk_length,), (row,))).narrowed(*self._read)
        return Neighbors(torch.from_numpy(found.ids_BLKR[0]), torch.from_numpy(found.lengths_BLK[0]))

    def close(self) -> None:
        self._source.close()
