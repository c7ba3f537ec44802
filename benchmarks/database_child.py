"""One build in a process of its own, so that its peak memory is its own; and bare Faiss on the same vectors.

    python database_child.py '{"source": ..., "out": ..., "tokenizer": ..., "encoder": "random" or a model, ...}'

Writes one line of JSON. `documents` limits the build, `base` makes it an incremental one, `adding_rounds` times its
index, and Faiss alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import OpenbookError
from openbook_core.tokenizer import Tokenizer
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.encoder import Encoder
from openbook_database.files import write_atomically
from openbook_database.index.files import QUANTISER, index_writers
from openbook_database.index.recipe import parse_recipe
from openbook_database.manifest import Manifest
from openbook_database.testing import HashEncoder

RANDOM = "random"
DIMENSION = 384
_SAMPLE_S = 0.1
_SPREAD = 0.65


class RandomEncoder(HashEncoder):
    """An encoder that costs next to nothing: a unit vector drawn from a passage's title, with noise from its text.

    So chunks of one document lie together, at cosines of about 0.7, and an index finds them with a few of its lists.
    """

    def __init__(self) -> None:
        super().__init__(DIMENSION)
        self._centre = lru_cache(256)(lambda title: _unit(title, DIMENSION))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors_ND = np.stack(
            [self._centre(text.partition(": ")[0]) + _SPREAD * _unit(text, DIMENSION) for text in texts]
        )
        return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), dtype=np.float32)


def _unit(text: str, dimension: int) -> NDArray[np.float32]:
    """A vector of length one that follows from the text."""
    random = np.random.Generator(np.random.SFC64(zlib.crc32(text.encode("utf-8", "replace"))))
    vector_D = random.standard_normal(dimension, dtype=np.float32)
    return np.asarray(vector_D / np.linalg.norm(vector_D), dtype=np.float32)


def run_child(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the process of `spec` measured; OpenbookError with the end of what it said where it failed."""
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(spec)], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    if done.returncode:
        raise OpenbookError(f"a build in its own process failed: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def build(spec: Mapping[str, Any], loaded: Encoder | None = None) -> dict[str, Any]:
    """Build as `spec` says, here, with the encoder that is `loaded` or with the one of the `spec`."""
    tokenizer = Tokenizer.load(spec["tokenizer"])
    encoder = loaded or _load(spec["encoder"])
    out, settings = Path(spec["out"]), BuildSettings(limit_documents=spec.get("documents"))
    base = {"base": Path(spec["base"])} if spec.get("base") else {}
    empty_mb, start = _status("VmHWM"), time.perf_counter()
    with PeakMemory() as peak:
        built = build_snapshot(
            [spec["source"]], out, database="bench", tokenizer=tokenizer, encoder=encoder, settings=settings, **base
        )
    index = Manifest.read(out).index
    result = {
        "documents": built.documents,
        "chunks": built.chunks,
        "encoded_chunks": built.chunks - built.shared.get("chunks", 0),
        "wall_s": time.perf_counter() - start,
        "stage_s": built.seconds,
        "peak_rss_mb": _status("VmHWM"),
        "peak_once_mb": peak.once_mb,
        "peak_anonymous_mb": peak.anonymous_mb,
        "rss_before_mb": empty_mb,
        "training_sample_bytes": 4 * encoder.dimension * index.trained_on,
        "threads": faiss.omp_get_max_threads(),
        "index": index_facts(out),
        "snapshot_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        "documents_bytes": (out / "documents.arrow").stat().st_size,
    }
    rounds = spec.get("adding_rounds", 0)
    return result | ({"adding": adding(out, rounds)} if rounds else {})


def index_facts(snapshot: Path) -> dict[str, Any]:
    """Recipe and bytes of the index of a snapshot, all shards together."""
    entry = Manifest.read(snapshot).index
    names = ("lists.faiss", "quantiser.faiss", "places.bin")
    size = sum(path.stat().st_size for name in names for path in snapshot.rglob(name))
    return {"factory": entry.factory, "search": entry.search, "recall": entry.recall, "bytes": size}


def adding(snapshot: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds from the snapshot's vectors in memory to an index on disk, in turns: our index files, and Faiss alone by the
    same recipe and on the same threads. Both end with the data on disk."""
    vectors_ND = np.concatenate(
        [np.fromfile(path, dtype="<f2").reshape(-1, DIMENSION) for path in sorted(snapshot.rglob("vectors.f16"))]
    ).astype(np.float32)
    return add_in_turns(Manifest.read(snapshot).index.factory, snapshot, vectors_ND, rounds)


def add_in_turns(factory: str, trained: Path, vectors_ND: NDArray[np.float32], rounds: int) -> dict[str, list[float]]:
    """As `adding`, with vectors and recipe given, and a quantiser in the folder `trained` where the recipe has one."""
    found: dict[str, list[float]] = {"ours_s": [], "bare_faiss_s": []}
    for _ in range(rounds):
        for name, write in (("ours_s", _our_index), ("bare_faiss_s", _bare_faiss)):
            folder = trained.with_name("adding")
            folder.mkdir()
            start = time.perf_counter()
            write(factory, trained, folder, vectors_ND)
            found[name].append(time.perf_counter() - start)
            shutil.rmtree(folder)
    return found


def _our_index(factory: str, trained: Path, folder: Path, vectors_ND: NDArray[np.float32]) -> None:
    dimension = vectors_ND.shape[1]
    writers = index_writers(
        parse_recipe(factory), trained, folder, len(vectors_ND), dimension, lambda: _blocks(vectors_ND)
    )
    for name, write in writers.items():
        write_atomically(folder / name, write)


def _bare_faiss(factory: str, trained: Path, folder: Path, vectors_ND: NDArray[np.float32]) -> None:
    quantiser, file = trained / QUANTISER, folder / "bare.faiss"
    if parse_recipe(factory).trained:
        index = faiss.read_index(str(quantiser))
    else:
        index = faiss.index_factory(vectors_ND.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    for block_ND in _blocks(vectors_ND):
        index.add(block_ND)
    faiss.write_index(index, str(file))
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _blocks(vectors_ND: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    rows = BuildSettings().embed_block
    return (vectors_ND[first : first + rows] for first in range(0, len(vectors_ND), rows))


def _load(name: str) -> Encoder:
    if name == RANDOM:
        return RandomEncoder()
    from openbook_embedder.engine import EncoderEngine

    return EncoderEngine.load(name, dtype="float32")


class PeakMemory:
    """The most memory, sampled: without files' (VmHWM counts mapped files too, which the system takes back at will), and with
    each mapped page counted once (Pss; VmHWM counts a page twice that is mapped twice, as the lists of IVF are)."""

    anonymous_mb = once_mb = 0.0

    def __enter__(self) -> PeakMemory:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(_SAMPLE_S):
            self.anonymous_mb = max(self.anonymous_mb, _status("RssAnon"))
            self.once_mb = max(self.once_mb, _status("Pss", "smaps_rollup"))


def _status(name: str, file: str = "status") -> float:
    """MB of 10^6 bytes from a file of /proc/self."""
    for line in (Path("/proc/self") / file).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


if __name__ == "__main__":
    print(json.dumps(build(json.loads(sys.argv[1]))))
