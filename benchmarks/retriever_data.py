"""The retriever's reference work: clustered vectors in a snapshot from the real builder, and the same index bare."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.fingerprint import Fingerprint
from openbook_database.build import finish_stage
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.snapshot import Snapshot
from openbook_database.testing import tiny_tokenizer

DATABASE = "reference"
CHUNK, CHUNKS_A_DOCUMENT, _DIGITS = 64, 8, 8
_NOISE, _QUERY_NOISE = 0.7, 0.4
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Work:
    """What is searched: the snapshot's folder, queries [q, d], and the folder that baselines read."""

    snapshot: Path
    queries: NDArray[np.float32]
    bare: Path
    tokens: Path


def clustered(rows: int, dimension: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Blocks of unit vectors around sqrt(rows) centres."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(max(2, int(rows**0.5)), dimension)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    for start in range(0, rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        noise = random.normal(size=(count, dimension)).astype(np.float32) * (_NOISE / dimension**0.5)
        block = centres[random.integers(0, len(centres), count)] + noise
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


class StoredEncoder:
    """The vector of a chunk is the row whose number its text begins with; of another text, any row."""

    max_tokens, dtype = 256, "float32"
    arithmetic: ClassVar[dict[str, str | int]] = {}

    def __init__(self, vectors_ND: NDArray[np.float32]) -> None:
        self._vectors_ND = vectors_ND
        self.dimension = vectors_ND.shape[1]
        self.fingerprint = Fingerprint({"architecture": "stored", "dimension": self.dimension})

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        numbers = [re.match(r"\d+", text) for text in texts]
        rows = [
            int(number[0]) if number else len(text) % len(self._vectors_ND)
            for number, text in zip(numbers, texts, strict=True)
        ]
        return np.ascontiguousarray(self._vectors_ND[rows])


def build(folder: Path, *, rows: int, dimension: int, lists: int, nprobe: int, queries: int, seed: int) -> Work:
    """One shard of `rows` chunks in documents of eight; the search probes `nprobe` lists, whatever recall that has."""
    vectors_ND = np.concatenate(list(clustered(rows, dimension, seed)))
    source = folder / "reference.jsonl"
    with source.open("w") as stream:
        for first in range(0, rows, CHUNKS_A_DOCUMENT):
            chunks = range(first, min(rows, first + CHUNKS_A_DOCUMENT))
            text = "".join(f"{row:0{_DIGITS}d}" + "." * (CHUNK - _DIGITS) for row in chunks)
            stream.write(json.dumps({"id": f"{first:0{_DIGITS}d}", "text": text}) + "\n")
    settings = BuildSettings(
        chunk_length=CHUNK,
        passage_template="{text}",
        index=f"IVF{lists},SQ8",
        train_sample=min(rows, 20 * lists),
        target_recall=0.01,
        keep_vectors=False,
        embed_block=1 << 14,
    )

    def measured(*arguments: Any) -> Any:
        return replace(_measure(*arguments), search={"nprobe": nprobe})

    _measure = finish_stage.measure
    with patch.object(finish_stage, "measure", measured):
        result = build_snapshot(
            [source],
            folder / "snapshot",
            database=DATABASE,
            tokenizer=tiny_tokenizer(),
            encoder=StoredEncoder(vectors_ND),
            settings=settings,
        )
    random = np.random.default_rng(seed + 1)
    near = vectors_ND[random.integers(0, rows, queries)]
    queries_QD = near + random.normal(size=near.shape).astype(np.float32) * (_QUERY_NOISE / dimension**0.5)
    bare = folder / "bare.faiss"
    faiss.write_index(bare_index(result.path, nprobe), str(bare))
    return Work(result.path, queries_QD.astype(np.float32), bare, result.path / "shard-00000" / "tokens.bin")


def bare_index(snapshot: Path, nprobe: int, *, mapped: bool = False) -> Any:
    """The same lists as Faiss users search them: in memory, or mapped from the snapshot."""
    index: Any = faiss.read_index(str(snapshot / "quantiser.faiss"))
    flags = faiss.IO_FLAG_MMAP if mapped else 0
    lists = faiss.read_InvertedLists(faiss.FileIOReader(str(snapshot / "shard-00000" / "lists.faiss")), flags)
    index.replace_invlists(lists, False)
    index.ntotal, index.nprobe = lists.compute_ntotal(), nprobe
    return index


def fast_scan_index(work: Work, lists: int, nprobe: int) -> Any:
    """Product codes of 4 bits over the same vectors (as the snapshot holds them) and the same lists."""
    (shard,) = Snapshot.open(work.snapshot, "sizes").shards
    trained: Any = faiss.read_index(str(work.snapshot / "quantiser.faiss"))
    dimension = trained.d
    coarse = faiss.IndexFlatIP(dimension)
    coarse.add(
        faiss.rev_swig_ptr(faiss.downcast_index(trained.quantizer).get_xb(), lists * dimension).reshape(lists, -1)
    )
    index: Any = faiss.IndexIVFPQFastScan(coarse, dimension, lists, dimension // 2, 4, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = False
    index.train(shard.vectors(np.arange(min(shard.rows, 20_000))))
    for start in range(0, shard.rows, _BLOCK):
        index.add(shard.vectors(np.arange(start, min(shard.rows, start + _BLOCK))))
    index.nprobe = nprobe
    return index
