"""Editions of one synthetic book for the swap's benchmark, and their exact answers.

Axes: N texts, D dimension, Q queries, K neighbours.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openbook_core.fingerprint import Fingerprint
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.snapshot import Snapshot
from openbook_database.testing import tiny_tokenizer

DATABASE, DIMENSION, CLUSTERS, CHUNK_LENGTH, CHUNKS_OF_DOCUMENT = "bench", 384, 1024, 64, 8
_NOISES = 1 << 16


class ClusteredEncoder:
    """Unit vectors around CLUSTERS centres, drawn by the text's checksum; costs next to nothing."""

    dimension, max_tokens, dtype = DIMENSION, 4096, "float32"

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        self.fingerprint = Fingerprint({"architecture": "clustered", "dimension": DIMENSION})
        self.arithmetic: dict[str, str | int] = {}
        self._centres_CD = random.standard_normal((CLUSTERS, DIMENSION), dtype=np.float32)
        self._noises_ND = random.standard_normal((_NOISES, DIMENSION), dtype=np.float32)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        codes_N = np.asarray([zlib.crc32(text.encode()) for text in texts], dtype=np.int64)
        vectors_ND = self._centres_CD[codes_N % CLUSTERS] + 0.7 * self._noises_ND[(codes_N >> 10) % _NOISES]
        return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), dtype=np.float32)


@dataclass(frozen=True)
class Book:
    """Editions, queries [Q, D], and for each snapshot's id the ids [Q, K] and scores [Q, K] that answer them."""

    editions: tuple[Path, ...]
    snapshots: tuple[str, ...]
    queries_QD: NDArray[np.float32]
    answers: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]


def build_book(folder: Path, *, editions: int, chunks: int, shards: int, index: str, queries: int, k: int) -> Book:
    """Every edition has other text, and so other vectors, in every chunk."""
    encoder = ClusteredEncoder()
    folders = tuple(_build(folder, f"edition-{number}", encoder, chunks, shards, index) for number in range(editions))
    queries_QD = encoder.encode([f"query {number}" for number in range(queries)])
    opened = [Snapshot.open(each, "sizes") for each in folders]
    answers = {snapshot.id: snapshot.search(queries_QD, k) for snapshot in opened}
    return Book(
        folders,
        tuple(snapshot.id for snapshot in opened),
        queries_QD,
        {name: (hits.ids_QK, hits.scores_QK) for name, hits in answers.items()},
    )


def _build(folder: Path, edition: str, encoder: ClusteredEncoder, chunks: int, shards: int, index: str) -> Path:
    source = folder / f"{edition}.jsonl"
    with source.open("w", encoding="utf-8") as stream:
        for number in range(chunks // CHUNKS_OF_DOCUMENT):
            stream.write(json.dumps({"id": f"{number:08d}", "title": edition, "text": _text(edition, number)}) + "\n")
    settings = BuildSettings(
        chunk_length=CHUNK_LENGTH, shards=shards, index=index, golden_queries=8, keep_vectors=False
    )
    built = build_snapshot(
        [source], folder / edition, database=DATABASE, tokenizer=tiny_tokenizer(), encoder=encoder, settings=settings
    )
    source.unlink()
    return built.path


def _text(edition: str, number: int) -> str:
    """One line of about a chunk's length for each chunk."""
    rng = np.random.default_rng(zlib.crc32(f"{edition} {number}".encode()))
    digits = rng.integers(0, 10, size=(CHUNKS_OF_DOCUMENT, 40)).astype(str)
    return " ".join(f"{edition} {number:08d} {''.join(row)}" for row in digits)
