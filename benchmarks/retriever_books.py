"""Databases for the retriever's fuzz, random searches of them, and what the right answers are.

Of an exact index the answer is by brute force over all rows. Of one that holds codes it is that of the same snapshot
opened in this process, query by query: so it depends on no other caller and no other process.

Axes: Q queries, K neighbours, N chunks, D dimension.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_core.clients.filters import where
from openbook_core.vectors import VECTOR_TYPES, decode_vectors, encode_vectors
from openbook_database.scoring import MISSING, Hits, best, exact_scores, merge
from openbook_database.snapshot import Snapshot
from openbook_database.testing import build_tiny_snapshot, tiny_rows
from openbook_proto.v1 import retriever_pb2 as pb

DIMENSION, SHARDS = 24, 3
TENANTS, YEARS = ("a", "b", "\u00e9"), 6
INDEXES = {"exact": "Flat", "codes": "IVF8,SQ8", "bits": "IVF4,RaBitQ"}
# Of the whole range that a search takes: the smallest are below what a float32 holds at full precision.
_SCALES = (1.0, 1.0, 1.0, 1e-42, 1e-20, 1e12, 9e16)


def build_books(folder: Path, documents: int) -> list[Book]:
    """One database of each index, over the same documents."""
    rows = tiny_rows(documents, seed=3, words=80)
    for number, row in enumerate(rows):
        row["tenant"], row["year"] = TENANTS[number % len(TENANTS)], number % YEARS
    return [Book(folder / name, name, index, rows) for name, index in INDEXES.items()]


class Book:
    """A snapshot in SHARDS shards, and its rows read without search."""

    def __init__(self, path: Path, name: str, index: str, rows: Sequence[dict[str, Any]]) -> None:
        build_tiny_snapshot(
            path, database=name, rows=rows, shards=SHARDS, dimension=DIMENSION, index=index,
            fields={"metadata": ("tenant", "year")},
        )  # fmt: skip
        self.path, self.name = path, name
        self.opened = Snapshot.open(path, "sizes")
        self.id = self.opened.id
        self.chunks = self.opened.manifest.chunks
        parts = [(shard, np.arange(shard.entry.first_row, shard.entry.end_row)) for shard in self.opened.shards]
        self._exact = index == "Flat"
        self._vectors_ND = np.concatenate([shard.vectors(ids) for shard, ids in parts])
        self._shard_N = np.concatenate([np.full(len(ids), shard.number) for shard, ids in parts])
        self._document_N = np.concatenate([shard.document_numbers(ids) for shard, ids in parts])
        self.names = [self.opened.documents.record(number).external_id for number in range(len(rows))]
        by_id = {row["id"]: row for row in rows}
        self._rows = [by_id[name] for name in self.names]

    # --- requests ---

    def search(self, rng: random.Random, shards: Sequence[int] | None = None, most: int = 8) -> pb.SearchRequest:
        """A search that must be answered: of the router, or of `shards` of a shard process."""
        count = rng.randint(1, most)
        kind = rng.choice(list(VECTOR_TYPES))
        request = pb.SearchRequest(
            database=self.name,
            snapshot=self.id if shards is not None or rng.random() < 0.5 else "",
            k=rng.choice([1, 2, 5, 17, 100, self.chunks + 3]),
            queries=encode_vectors(self._queries(rng, count, kind), VECTOR_TYPES[kind]),
            fields=pb.Fields(tokens=rng.random() < 0.6, text=rng.random() < 0.3, document=rng.random() < 0.5),
            allow_partial=rng.random() < 0.3,
        )
        if rng.random() < 0.5:
            for _ in range(count):
                request.exclusions.add(document_ids=self._some_names(rng))
        if rng.random() < 0.4:
            request.filters.extend(self._filter(rng) for _ in range(rng.choice([1, count])))
        if rng.random() < 0.3:
            request.min_score = rng.choice([-1e30, -0.1, 0.0, 0.3, 1e30])
        if shards is not None and len(shards) == 1 and rng.random() < 0.5:
            request.shard = shards[0]
        elif shards is not None:
            request.shards.extend(shards)
        return request

    def _queries(self, rng: random.Random, count: int, kind: str) -> NDArray[np.float32]:
        numbers = np.random.default_rng(rng.getrandbits(32))
        queries_QD = numbers.standard_normal((count, DIMENSION), dtype=np.float32)
        for query in range(count):
            if rng.random() < 0.3:
                queries_QD[query] = self._vectors_ND[rng.randrange(self.chunks)]
            if rng.random() < 0.05:
                queries_QD[query] = 0
            if kind in ("float32", "bfloat16"):
                queries_QD[query] *= np.float32(rng.choice(_SCALES))
        return queries_QD.astype(np.float16) if kind == "float16" else queries_QD

    def _some_names(self, rng: random.Random) -> list[str]:
        known = rng.sample(self.names, rng.choice([0, 1, 3, len(self.names) // 2, len(self.names)]))
        return known + ["no such document", "", "../" + "x" * 300][: rng.choice([0, 0, 1, 3])]

    def _filter(self, rng: random.Random) -> pb.Filter:
        columns: dict[str, Any] = {}
        if rng.random() < 0.6:
            some = rng.sample([*TENANTS, "nobody"], rng.randint(1, 3))
            columns["tenant"] = {"not_in": some} if rng.random() < 0.3 else some
        if rng.random() < 0.6:
            columns["year"] = {"at_least": rng.randrange(YEARS), "below": rng.randrange(YEARS + 2)}
        return where(**columns)

    # --- answers ---

    def expected(self, request: pb.SearchRequest) -> tuple[Hits, int]:
        """What a search must find, and how many different excluded ids are unknown."""
        queries_QD = decode_vectors(request.queries, "queries")
        shards = list(request.shards) or ([request.shard] if request.HasField("shard") else range(SHARDS))
        excluded = [set(each.document_ids) for each in request.exclusions] or [set()] * len(queries_QD)
        filters = list(request.filters) or [pb.Filter()]
        least = request.min_score if request.HasField("min_score") else None
        answers = []
        for query, query_D in enumerate(queries_QD):
            allowed = self._allowed(filters[query if len(filters) > 1 else 0])
            names = excluded[query]
            find = self._brute_force if self._exact else self._opened
            answers.append(find(query_D, request.k, names, allowed, least, shards))
        unknown = set().union(*excluded) - set(self.names)
        return Hits(*(np.concatenate(arrays) for arrays in zip(*answers, strict=True))), len(unknown)

    def _allowed(self, given: pb.Filter) -> NDArray[np.bool_]:
        """Which documents meet what `_filter` made, in plain Python."""

        def meets(row: dict[str, Any], condition: pb.FilterCondition) -> bool:
            if condition.column == "tenant":
                return (row["tenant"] in [value.text for value in condition.any_of.values]) != condition.negate
            return bool(condition.range.at_least.number <= row["year"] < condition.range.below.number)

        return np.asarray([all(meets(row, each) for each in given.all_of) for row in self._rows], dtype=np.bool_)

    def _brute_force(
        self, query_D: NDArray[np.float32], k: int, names: set[str], allowed: NDArray[np.bool_],
        least: float | None, shards: Sequence[int],
    ) -> Hits:  # fmt: skip
        scores_1N = exact_scores(query_D[None], self._vectors_ND[None])
        left = np.asarray([name not in names for name in self.names])
        kept_N = (allowed & left)[self._document_N] & np.isin(self._shard_N, list(shards))
        if least is not None:
            kept_N &= scores_1N[0] >= np.float32(least)
        return best(np.where(kept_N, np.arange(self.chunks), MISSING)[None], scores_1N, k)

    def _opened(
        self, query_D: NDArray[np.float32], k: int, names: set[str], allowed: NDArray[np.bool_],
        least: float | None, shards: Sequence[int],
    ) -> Hits:  # fmt: skip
        numbers = {number for number, name in enumerate(self.names) if name in names}
        parts = [
            shard.search(query_D[None], k, [numbers], least, [None if allowed.all() else allowed])
            for shard in self.opened.shards
            if shard.number in shards
        ]
        return merge(parts, k)

    def chunk_bytes(self, ids: NDArray[np.int64]) -> bytes:
        """Tokens of chunks and continuations, as they travel."""
        return b"".join(self.opened.shard_of(int(i)).tokens(np.asarray([i]))[0].tobytes() for i in ids)

    def external_ids(self, ids: NDArray[np.int64]) -> list[str]:
        """The document of each chunk."""
        return [self.names[number] for number in self._document_N[ids]]

    def texts(self, ids: NDArray[np.int64]) -> list[str]:
        return [self.opened.shard_of(int(i)).text(np.asarray([i]))[0] for i in ids]
