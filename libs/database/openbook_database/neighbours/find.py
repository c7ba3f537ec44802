"""Finding the neighbours of every chunk of a corpus, block after block, so that a killed run goes on where it was.

A chunk asks as it does in training: its text, in the role of a query. Axes: N chunks of a block, K neighbours.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError, InputError
from openbook_core.files import sync
from openbook_core.fingerprint import canonical_json
from openbook_database.build.progress import Progress, Update, time_left
from openbook_database.files import clear_write_errors, write_bytes_atomically
from openbook_database.neighbours.cache import DOCUMENTS, HEADER, IDS, SCORES, NeighbourCache, write_header
from openbook_database.neighbours.corpus import Corpus, documents_to_json
from openbook_database.query_encoder import QueryEncoder, require_encoder_of
from openbook_database.scoring import MISSING, Hits
from openbook_database.search import MAX_K
from openbook_database.snapshot import Snapshot
from openbook_database.work_folder import appear, locked, require_same

_ADVICE = "delete it, or choose another folder"


@dataclass(frozen=True)
class Found:
    """What came of it. `known_documents` of the corpus are in the snapshot; `missing` of chunks * k neighbours are not
    there."""

    path: str
    snapshot: str
    corpus_digest: str
    chunks: int
    documents: int
    known_documents: int
    missing: int
    seconds: float
    reused: bool


def find_neighbours(
    make_corpus: Callable[[Path], Corpus],
    snapshot: Snapshot,
    encoder: QueryEncoder,
    out: str | Path,
    *,
    k: int = 2,
    max_score: float | None = None,
    block_chunks: int = 1024,
    progress: Progress = lambda update: None,
) -> Found:
    """Write the cache of the corpus's neighbours in `snapshot` to the folder `out`, or go on with one that was begun.

    A chunk's own document (the one of the same external id) never answers it, nor, with `max_score`, does any document
    that has a chunk scoring more: a near-duplicate would show the text that the model is to predict. Blank chunks ask
    nothing. `make_corpus` is given a folder for what it must keep on the disk. Raises MismatchError for another encoder
    than the snapshot's, ConfigError naming each setting in which a cache or its beginnings at `out` differ, InputError
    for a folder that holds something else, and ConflictError where another run writes there.
    """
    started, out = time.monotonic(), Path(out).absolute()
    if not 1 <= k <= MAX_K:
        raise ArgumentError(f"k: must be from 1 to {MAX_K}, given {k}", field="k")
    require_encoder_of(snapshot.manifest, encoder)
    with _locked(out) as work:
        corpus = make_corpus(work / "corpus")
        settings = {
            "corpus_digest": corpus.documents.corpus_digest(snapshot.manifest.contract.chunk_length),
            "snapshot": snapshot.id,
            "k": k,
            "max_score": max_score,
            "block_chunks": block_chunks,
            "dtype": encoder.dtype,
        }
        reused = _finished(out, settings)
        if not reused:
            with clear_write_errors(out):
                _Search(corpus, snapshot, encoder, work, settings).run(progress)
                appear(work / "cache", out)
    cache = NeighbourCache.open(out)
    _, unknown = snapshot.documents.numbers(corpus.documents.ids)
    documents = len(corpus.documents.ids)
    return Found(
        path=str(out),
        snapshot=snapshot.id,
        corpus_digest=cache.corpus_digest,
        chunks=corpus.documents.chunks,
        documents=documents,
        known_documents=documents - unknown,
        missing=int((cache.ids_CK == MISSING).sum()),
        seconds=time.monotonic() - started,
        reused=reused,
    )


class _Search:
    """The blocks that are left; `progress.json` says how many are done, and is written after their bytes."""

    def __init__(
        self, corpus: Corpus, snapshot: Snapshot, encoder: QueryEncoder, work: Path, settings: dict[str, Any]
    ) -> None:
        self._corpus, self._snapshot, self._encoder = corpus, snapshot, encoder
        self._folder, self._state, self._settings = work / "cache", work / "progress.json", settings

    def run(self, progress: Progress) -> None:
        documents, k = self._corpus.documents, int(self._settings["k"])
        chunks, size = documents.chunks, int(self._settings["block_chunks"])
        done = self._begin(chunks, k)
        started, first = time.monotonic(), done
        own_C = self._own_documents()
        with (self._folder / IDS).open("r+b") as ids, (self._folder / SCORES).open("r+b") as scores:
            for start in range(done, chunks, size):
                hits = self._block(start, min(start + size, chunks), own_C)
                for stream, array in ((ids, hits.ids_QK.astype("<i8")), (scores, hits.scores_QK.astype("<f4"))):
                    stream.seek(start * k * array.itemsize)
                    stream.write(array.tobytes())
                    stream.flush()
                    os.fsync(stream.fileno())
                done = start + len(hits.ids_QK)
                self._note(done)
                rate = (done - first) / max(1e-9, time.monotonic() - started)
                progress(Update("neighbours", done, chunks, rate, time_left(chunks - done, rate)))
        write_header(self._folder, self._settings, documents)

    def _begin(self, chunks: int, k: int) -> int:
        """The chunks that an earlier run has done."""
        if self._state.exists() and self._folder.exists():
            state = json.loads(self._state.read_bytes())
            begun = f"{self._folder.parent} holds work that was begun otherwise"
            require_same(state["settings"], self._settings, begun, _ADVICE)
            return int(state["done"])
        shutil.rmtree(self._folder, ignore_errors=True)
        write_bytes_atomically(self._folder / DOCUMENTS, documents_to_json(self._corpus.documents))
        for name, width in ((IDS, 8), (SCORES, 4)):
            with (self._folder / name).open("wb") as stream:
                os.truncate(stream.fileno(), chunks * k * width)
            sync(self._folder / name)
        self._note(0)
        return 0

    def _note(self, done: int) -> None:
        write_bytes_atomically(self._state, canonical_json({"done": done, "settings": self._settings}).encode())

    def _own_documents(self) -> NDArray[np.int64]:
        """For each chunk the number of its document in the snapshot, -1 where it is not there."""
        documents, table = self._corpus.documents, self._snapshot.documents
        return np.repeat(table.find(documents.ids), documents.counts)

    def _block(self, first: int, end: int, own_C: NDArray[np.int64]) -> Hits:
        k = int(self._settings["k"])
        found = Hits(np.full((end - first, k), MISSING, np.int64), np.zeros((end - first, k), np.float32))
        texts = self._corpus.texts(first, end)
        asked = [place for place, text in enumerate(texts) if text.strip()]
        if not asked:
            return found
        queries_ND = self._encoder.encode_queries([texts[place] for place in asked])
        exclude = [{int(own)} - {MISSING} for own in own_C[first:end][asked]]
        hits = search_without(self._snapshot, queries_ND, k, exclude, self._settings["max_score"])
        found.ids_QK[asked], found.scores_QK[asked] = hits
        return found


def search_without(
    snapshot: Snapshot,
    queries_QD: NDArray[np.float32],
    k: int,
    exclude: Sequence[set[int]],
    max_score: float | None,
) -> Hits:
    """The k nearest chunks of each query from documents that are not excluded and none of whose chunks scores more than
    `max_score`. Such documents are added to `exclude`."""
    hits = snapshot.search(queries_QD, k, exclude)
    if max_score is None:
        return hits
    pending = np.flatnonzero(hits.scores_QK[:, 0] > np.float32(max_score))
    while len(pending):
        for query in pending.tolist():
            near = hits.ids_QK[query][hits.scores_QK[query] > np.float32(max_score)]
            exclude[query].update(snapshot.documents.of_rows(near[near != MISSING]).tolist())
        again = snapshot.search(queries_QD[pending], k, [exclude[query] for query in pending.tolist()])
        hits.ids_QK[pending], hits.scores_QK[pending] = again
        pending = pending[again.scores_QK[:, 0] > np.float32(max_score)]
    return hits


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """OUT.building/, held; it is gone when the cache has appeared."""
    work = out.with_name(out.name + ".building")
    with locked(work, out, "run"):
        yield work
        shutil.rmtree(work, ignore_errors=True)


def _finished(out: Path, settings: dict[str, Any]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / HEADER).is_file():
        raise InputError(f"{out} exists and is no neighbour cache: choose another folder", field="out")
    earlier = NeighbourCache.open(out).header["settings"]
    require_same(earlier, settings, f"{out} holds a cache that was made otherwise", _ADVICE)
    return True
