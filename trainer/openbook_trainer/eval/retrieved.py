"""Neighbours for every chunk of the measured texts, from the live retriever, all of one snapshot.

Axes: C chunks, K neighbours, R tokens of a neighbour (2m).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from openbook_core.clients import RetrieverClient
from openbook_core.tokenizer import Tokenizer
from openbook_model import RetroConfig
from openbook_trainer.config import RetrievalConfig
from openbook_trainer.data import Batch, ChunkedCorpus, Query
from openbook_trainer.eval.half import HalfOfDatabase
from openbook_trainer.eval.texts import MeasuredText
from openbook_trainer.neighbours import LiveSource, Neighbors, pin_snapshot

OVERLAP_NEIGHBORS = 10  # as many as RETRO looks for overlap in
_QUERIES_PER_CALL = 32
_IDS_PER_CALL = 256
_NOTHING = np.zeros((1, 1), np.int64)


@dataclass(frozen=True)
class Retrieved:
    """Neighbours [1, C, K, R] of each text, in their order, and where they came from.

    `nearest`: those of every chunk, the last and perhaps short one too, OVERLAP_NEIGHBORS or more; of these a model reads
    the first `k` of the chunks that are whole before it predicts on. `half`: those k of half of the database, and how many
    chunks got too few of them (see HalfOfDatabase). `known_documents` of the texts are in the snapshot under their ids;
    each was excluded for its own chunks.
    """

    snapshot: str
    known_documents: int
    k: int
    nearest: list[Neighbors]
    half: list[Neighbors]
    half_short: int

    @cached_property
    def neighbors(self) -> list[Neighbors]:
        """What a model reads ON."""
        counts = [found.lengths_BLK.shape[1] for found in self.half]
        return [
            Neighbors(found.ids_BLKR[:, :count, : self.k], found.lengths_BLK[:, :count, : self.k])
            for found, count in zip(self.nearest, counts, strict=True)
        ]

    def shuffled(self) -> list[Neighbors]:
        """Each chunk gets the neighbours of the chunk that is half of all chunks before it, cyclically.

        They may come from a text's own document, which was excluded for another: that can only make them look useful.
        """
        whole = _joined(self.neighbors)
        turn = whole.lengths_BLK.shape[1] // 2
        turned = Neighbors(np.roll(whole.ids_BLKR, turn, axis=1), np.roll(whole.lengths_BLK, turn, axis=1))
        return _parted(turned, [found.lengths_BLK.shape[1] for found in self.neighbors])

    def same_in_half(self) -> int:
        """Chunks for which the half found just the same neighbours."""
        return sum(
            int((one.ids_BLKR == other.ids_BLKR).all(axis=(2, 3)).sum())
            for one, other in zip(self.neighbors, self.half, strict=True)
        )


def retrieve(
    texts: Sequence[MeasuredText],
    config: RetroConfig,
    tokenizer: Tokenizer,
    address: str,
    database: str,
    progress: Callable[[str, int, int], None],
) -> Retrieved:
    """Ask the whole database and half of it. Errors as in `pin_snapshot` and `LiveSource`."""
    named = [text.external_id for text in texts if text.external_id is not None]
    settings = RetrievalConfig(address=address, database=database, exclude_own_document=bool(named))
    m, k = config.chunk_length, config.num_neighbors
    snapshot = pin_snapshot(settings, "", tokenizer, m)
    whole = [_queries(text, -(-len(text.tokens_N) // m), tokenizer, m) for text in texts]
    read = [queries[: (len(text.tokens_N) - 1) // m] for text, queries in zip(texts, whole, strict=True)]
    with RetrieverClient(address) as client:
        half = HalfOfDatabase(client)
        known = _known(client, settings, snapshot, named)
        wide = max(k, OVERLAP_NEIGHBORS)
        nearest = _fetch(LiveSource(client, settings, snapshot, wide, m), whole, progress, "neighbours")
        halved = _fetch(LiveSource(half, settings, snapshot, k, m), read, progress, "half of the database")
    return Retrieved(snapshot, known, k, nearest, halved, half.short)


def _fetch(
    source: LiveSource,
    queries: Sequence[list[Query | None]],
    progress: Callable[[str, int, int], None],
    stage: str,
) -> list[Neighbors]:
    flat = [query for some in queries for query in some]
    found = []
    for start in range(0, len(flat), _QUERIES_PER_CALL):
        row = tuple(flat[start : start + _QUERIES_PER_CALL])
        found.append(source.fetch(Batch(_NOTHING, _NOTHING, None, (1,), (row,))))
        progress(stage, start + len(row), len(flat))
    return _parted(_joined(found), [len(some) for some in queries])


def _queries(text: MeasuredText, count: int, tokenizer: Tokenizer, m: int) -> list[Query | None]:
    corpus = ChunkedCorpus([(text.external_id or "", text.tokens_N.astype(np.uint32))], tokenizer, m)
    return [corpus.query(chunk) for chunk in range(count)]


def _known(client: RetrieverClient, config: RetrievalConfig, snapshot: str, ids: Sequence[str]) -> int:
    """How many of these documents the snapshot holds."""
    unknown = 0
    for start in range(0, len(ids), _IDS_PER_CALL):
        asked = list(ids[start : start + _IDS_PER_CALL])
        found = client.search_text(config.database, ["probe"], 1, snapshot=snapshot, exclude=[asked])
        unknown += found.unknown_exclusions
    return len(ids) - unknown


def _joined(parts: Sequence[Neighbors]) -> Neighbors:
    return Neighbors(
        np.concatenate([part.ids_BLKR for part in parts], axis=1),
        np.concatenate([part.lengths_BLK for part in parts], axis=1),
    )


def _parted(whole: Neighbors, counts: Sequence[int]) -> list[Neighbors]:
    ends = np.cumsum(counts)
    return [
        Neighbors(whole.ids_BLKR[:, end - count : end], whole.lengths_BLK[:, end - count : end])
        for end, count in zip(ends.tolist(), counts, strict=True)
    ]
