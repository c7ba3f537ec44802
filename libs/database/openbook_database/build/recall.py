"""How good an index is: recall@10 against exact search, by nprobe or efSearch, and the default that follows from it.

Axes: Q queries, K neighbours, D dimension.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_database.build.corpus import Corpus
from openbook_database.build.embed_stage import read_rows, read_vectors
from openbook_database.build.settings import BuildSettings
from openbook_database.build.train_stage import sample_rows, training_rows
from openbook_database.build.workspace import Workspace
from openbook_database.exclusions import RowRanges, starts_of
from openbook_database.index.base import IndexReader
from openbook_database.index.files import regular_blocks
from openbook_database.index.flat import FlatReader
from openbook_database.index.ivf import IVFReader
from openbook_database.index.recipe import Recipe
from openbook_database.manifest import IndexEntry
from openbook_database.scoring import MISSING, Hits, exact_scores, merge, norms
from openbook_database.search import search_rows

K = 10
_SEED = 10_622
_QUERIES, _QUERIES_LEAST = 1000, 100
_COMPARISONS = 2_000_000_000
_TRUTH_BLOCK = 1 << 13
_BATCH = 128
_GAIN = 0.002
_FIRST_EF, _MOST_EF = 16, 1024


@dataclass(frozen=True)
class Part:
    """The index of one shard and its first row."""

    index: IndexReader
    first_row: int


def measure(
    recipe: Recipe,
    parts: Sequence[Part],
    corpus: Corpus,
    dimension: int,
    settings: BuildSettings,
    work: Workspace,
    progress: Callable[[float], None] = lambda share: None,
) -> IndexEntry:
    """What the manifest says of the index. Latency goes to the log; `progress` is told of each block and each effort the share
    that is done, at most: fewer efforts may do."""
    trained_on = training_rows(recipe, corpus.chunks, dimension, settings)
    if recipe.exact:
        return IndexEntry(recipe.factory, True, trained_on, {}, {"by_definition": 1.0})
    count = min(corpus.chunks, _QUERIES, max(_QUERIES_LEAST, _COMPARISONS // corpus.chunks))
    rows_Q = sample_rows(corpus.chunks, count, _SEED)
    queries_QD = read_rows(work, corpus, dimension, settings.embed_block, rows_Q)
    truth = _nearest(rows_Q, queries_QD, corpus, dimension, settings, work, lambda share: progress(share / 2))
    name = "nprobe" if recipe.trained else "efSearch"
    effort, most = _first(recipe), recipe.lists if recipe.trained else _MOST_EF
    table: list[dict[str, Any]] = []
    while True:
        began = time.perf_counter()
        found, distances = _search(parts, rows_Q, queries_QD, effort)
        seconds = time.perf_counter() - began
        recall = _recall(found, truth, queries_QD, corpus, dimension, settings, work)
        table.append({name: effort, "recall": recall, "distances": distances})
        progress(0.5 + 0.5 * len(table) / (1 + (most // _first(recipe)).bit_length()))
        work.log.write("recall", **table[-1], milliseconds_per_query=1000 * seconds / count, queries=count)
        flat = len(table) > 4 and recall - table[-3]["recall"] < _GAIN
        if recall >= settings.target_recall or effort >= most or flat:
            break
        effort = min(2 * effort, most)
    chosen = min(table, key=lambda line: (max(0.0, settings.target_recall - line["recall"]), line[name]))
    sample = {"k": K, "queries": count, "seed": _SEED, "target": settings.target_recall}
    return IndexEntry(
        factory=recipe.factory,
        exact=False,
        trained_on=trained_on,
        search={name: chosen[name]},
        recall={**sample, "measured": table, "chosen": chosen["recall"]},
    )


def _first(recipe: Recipe) -> int:
    """The least effort that is tried."""
    return 1 if recipe.trained else _FIRST_EF


def recall_note(index: IndexEntry) -> str | None:
    """What to tell where the recall that was asked for is not reached."""
    recall = index.recall
    if index.exact or recall["chosen"] >= recall["target"]:
        return None
    setting = ", ".join(f"{name} {value}" for name, value in index.search.items())
    return (
        f"recall@{recall['k']} of {recall['target']} was asked for, {index.factory} reaches {recall['chosen']:.3f} at {setting}: "
        "choose an index with finer codes for more"
    )


def _nearest(
    rows_Q: NDArray[np.int64],
    queries_QD: NDArray[np.float32],
    corpus: Corpus,
    dimension: int,
    settings: BuildSettings,
    work: Workspace,
    progress: Callable[[float], None],
) -> Hits:
    """The true neighbours of rows, themselves left out, by one pass over all vectors."""
    truth = Hits(np.full((len(rows_Q), K), MISSING, np.int64), np.zeros((len(rows_Q), K), np.float32))
    start = 0
    blocks = read_vectors(work, corpus, dimension, settings.embed_block, 0, corpus.chunks)
    for block_ND in regular_blocks(blocks, _TRUTH_BLOCK):
        index = faiss.IndexFlatIP(dimension)
        index.add(block_ND)
        part = Part(FlatReader(index, float(norms(block_ND).max()) * (1 + 1e-6)), start)
        truth = merge([truth, _search_part(part, rows_Q, queries_QD, None)], K)
        start += len(block_ND)
        progress(start / corpus.chunks)
    return truth


def _search(
    parts: Sequence[Part], rows_Q: NDArray[np.int64], queries_QD: NDArray[np.float32], effort: int
) -> tuple[Hits, float]:
    """What is found, and the mean number of rows that a query was compared with."""
    counters: Any = faiss.cvar
    stats = counters.hnsw_stats
    stats.reset()
    found = []
    for start in range(0, len(rows_Q), _BATCH):
        batch = slice(start, start + _BATCH)
        found.append(merge([_search_part(part, rows_Q[batch], queries_QD[batch], effort) for part in parts], K))
    hits = Hits(np.concatenate([each.ids_QK for each in found]), np.concatenate([each.scores_QK for each in found]))
    first = parts[0].index
    if isinstance(first, IVFReader):
        compared = first.begin(queries_QD, np.full(len(rows_Q), K + 1), effort).compared_Q
        return hits, float(compared.mean())
    return hits, stats.ndis / len(rows_Q)


def _search_part(part: Part, rows_Q: NDArray[np.int64], queries_QD: NDArray[np.float32], effort: int | None) -> Hits:
    local_Q = rows_Q - part.first_row
    held_Q = (local_Q >= 0) & (local_Q < part.index.rows)
    own_R = local_Q[held_Q]
    excluded = RowRanges(own_R, own_R + 1, starts_of(held_Q.astype(np.int64)))
    wanted_Q = np.full(len(rows_Q), K + 1, dtype=np.int64)
    hits = search_rows(part.index, queries_QD, K, excluded=excluded, wanted_Q=wanted_Q, effort=effort)
    return Hits(np.where(hits.ids_QK == MISSING, MISSING, hits.ids_QK + part.first_row), hits.scores_QK)


def _recall(
    found: Hits,
    truth: Hits,
    queries_QD: NDArray[np.float32],
    corpus: Corpus,
    dimension: int,
    settings: BuildSettings,
    work: Workspace,
) -> float:
    """Share of the true neighbours that were found; of rows that score equally any will do."""
    true_Q = (truth.ids_QK != MISSING).sum(axis=1)
    if not true_Q.any():
        return 1.0
    rows, places = np.unique(np.maximum(found.ids_QK, 0), return_inverse=True)
    vectors_ND = read_rows(work, corpus, dimension, settings.embed_block, rows)
    scores_QK = exact_scores(queries_QD, vectors_ND[places.reshape(found.ids_QK.shape)])
    worst_Q = np.where(truth.ids_QK == MISSING, np.inf, truth.scores_QK).min(axis=1)
    good_Q = ((scores_QK >= worst_Q[:, None]) & (found.ids_QK != MISSING)).sum(axis=1)
    return float(good_Q.sum() / true_Q.sum())
