"""Whom builds are measured against: retro-pytorch from the same text, autofaiss from the same vectors. See `peers/`."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
from database_build import Book
from database_child import index_facts
from embedder_sides import peer_environment, program
from measure import in_turns
from numpy.typing import NDArray

from openbook_core.errors import OpenbookError
from openbook_core.tokenizer import Tokenizer
from openbook_core.weights import resolve_model
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.encoder import Encoder
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder

PEER = "retro-pytorch"
NEIGHBOURS, K = 2, 10
_SCRIPTS = Path(__file__).parent / "peers"
_NOISE = 0.3
_NUMBERS = 8


def text_folder(book: Book, documents: int, folder: Path) -> Path:
    """The first documents as .txt files."""
    folder.mkdir()
    for number, row in enumerate(book.rows(documents)):
        (folder / f"{number:06d}.txt").write_text(row["text"], encoding="utf-8")
    return folder


def retro_pytorch(texts: Path, model: str, work: Path) -> dict[str, Any]:
    """Chunks, vectors, index and 2 neighbours of each chunk from other documents; its loading is not counted."""
    return _run_peer("retro_pytorch_peer.py", [str(texts), str(resolve_model(model))], work)


def ours_from_text(texts: Path, tokenizer: Tokenizer, encoder: Encoder, out: Path) -> dict[str, Any]:
    """The same with us: a build, then the search for every chunk with its own document left out."""
    source = out.with_name(out.name + ".jsonl")
    start = time.perf_counter()
    with source.open("w", encoding="utf-8") as stream:
        for file in sorted(texts.iterdir()):
            stream.write(json.dumps({"id": file.stem, "text": file.read_text(encoding="utf-8")}) + "\n")
    built = build_snapshot([source], out, database="bench", tokenizer=tokenizer, encoder=encoder)
    middle = time.perf_counter()
    snapshot = Snapshot.open(out, "sizes")
    ids_NK = np.concatenate(
        [
            snapshot.search(
                shard.vectors(ids), NEIGHBOURS, [[number] for number in shard.document_numbers(ids).tolist()]
            ).ids_QK
            for shard in snapshot.shards
            for ids in np.array_split(np.arange(shard.entry.first_row, shard.entry.end_row), 1 + shard.rows // 512)
        ]
    )
    end = time.perf_counter()
    return {
        "chunks": built.chunks,
        "docs": built.documents,
        "seconds": end - start,
        "stage_s": {
            "prepare": middle - start - sum(built.seconds.values()),
            **built.seconds,
            "neighbours": end - middle,
        },
        "neighbours_bytes": ids_NK.nbytes,
    }


def measure_from_text(
    book: Book, documents: int, tokenizer: Tokenizer, encoder: Encoder, work: Path, limits: dict[str, Any]
) -> dict[str, Any]:
    """The trials of both from the same folder of text to 2 neighbours of each chunk, in turns."""
    texts = text_folder(book, documents, work / "texts")
    outs = itertools.count()
    sides = {
        "ours": lambda: ours_from_text(texts, tokenizer, encoder, work / f"ours-{next(outs)}"),
        "retro_pytorch": lambda: retro_pytorch(texts, book.model, work),
    }
    trials = in_turns(sides, **limits)
    characters = sum(len(file.read_text(encoding="utf-8")) for file in texts.iterdir())
    return {"documents": documents, "characters": characters, **trials}


class GivenVectors(HashEncoder):
    """The vector of the text "N" is row N; all other texts get the first."""

    def __init__(self, vectors_ND: NDArray[np.float32]) -> None:
        super().__init__(vectors_ND.shape[1])
        self._vectors_ND = vectors_ND

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._vectors_ND[[int(text) if text.isdigit() and len(text) == _NUMBERS else 0 for text in texts]]


def spread(vectors_ND: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """`count` unit vectors: each given one, then copies with Gaussian noise of norm 0.3."""
    random = np.random.default_rng(seed)
    repeated_ND = np.resize(vectors_ND, (count, vectors_ND.shape[1])).astype(np.float32)
    noise_ND = random.standard_normal(repeated_ND.shape, dtype=np.float32) * (_NOISE / vectors_ND.shape[1] ** 0.5)
    noise_ND[: len(vectors_ND)] = 0
    spread_ND = repeated_ND + noise_ND
    return np.asarray(spread_ND / np.linalg.norm(spread_ND, axis=1, keepdims=True), dtype=np.float32)


def measure_index(
    real_ND: NDArray[np.float32], count: int, queries: int, tokenizer: Tokenizer, work: Path
) -> dict[str, Any]:
    """Ours and autofaiss on the same vectors: build, recall@10 and latency of single queries; its memory is ours.

    Axes: D dimension, N vectors, Q queries.
    """
    vectors_ND = spread(real_ND, count + queries, seed=5)
    queries_QD, vectors_ND = vectors_ND[-queries:], vectors_ND[:-queries]
    exact = faiss.IndexFlatIP(vectors_ND.shape[1])
    exact.add(vectors_ND)
    expected_QK = exact.search(queries_QD, K)[1]
    del exact

    source, out = work / "vectors.jsonl", work / "vectors"
    with source.open("w") as stream:
        stream.writelines(f'{{"id": "{n:0{_NUMBERS}d}", "text": "{n:0{_NUMBERS}d}"}}\n' for n in range(count))
    built = build_snapshot(
        [source],
        out,
        database="vectors",
        tokenizer=tokenizer,
        encoder=GivenVectors(vectors_ND),
        settings=BuildSettings(passage_template="{text}", chunk_length=16),
    )
    snapshot = Snapshot.open(out, "sizes")
    each = []
    for query_D in queries_QD[:256]:
        start = time.perf_counter()
        snapshot.search(query_D[None], K)
        each.append(time.perf_counter() - start)
    found_QK = snapshot.search(queries_QD, K).ids_QK
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found_QK.tolist(), expected_QK.tolist(), strict=True)])
    facts = index_facts(out)
    ours = {
        "seconds": sum(built.seconds.get(stage, 0.0) for stage in ("train-index", "add")),
        "stage_s": built.seconds,
        "recall": float(recall),
        "query_ms": 1e3 * float(np.median(each)),
        **{name: facts[name] for name in ("factory", "search", "bytes")},
    }
    (work / "npy").mkdir()
    for number, first in enumerate(range(0, count, 50_000)):
        np.save(work / "npy" / f"{number:05d}.npy", vectors_ND[first : first + 50_000])
    np.save(work / "queries.npy", queries_QD)
    np.save(work / "expected.npy", expected_QK)
    arguments = [str(work / name) for name in ("npy", "queries.npy", "expected.npy")]
    peer = _run_peer("autofaiss_peer.py", [*arguments, str(ours["bytes"]), str(faiss.omp_get_max_threads())], work)
    return {"vectors": count, "real_vectors": len(real_ND), "noise_norm": _NOISE, "ours": ours, "autofaiss": peer}


def _run_peer(script: str, arguments: Sequence[str], work: Path) -> dict[str, Any]:
    """What a peer printed, in a folder of its own: retro-pytorch takes up what an earlier trial left in it."""
    with TemporaryDirectory(dir=work) as folder:
        done = subprocess.run(
            [str(program(PEER, "python")), str(_SCRIPTS / script), *arguments],
            cwd=folder,
            env=peer_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise OpenbookError(f"{script} failed: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
