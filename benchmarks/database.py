"""Building a book: against the bare encoder, bare Faiss, retro-pytorch and autofaiss; memory and cost by size.

    python benchmarks/database.py [--quick] [--data FILE] [--limit DOCUMENTS] [--peers all|none] [--json FILE] [--plot FILE.png]

- encoder share: chunks per second of a build over those of the encoder alone on the same lists of texts, in turns;
- by size, each in a process of its own: peak memory, seconds by stage, and in turns our index files and Faiss alone from the
  same vectors with the same recipe and threads. The large sizes get random unit vectors instead of an encoder (hours of
  it), and say so;
- incremental: a build from a base with 1% of the documents changed, over the full one;
- retro-pytorch from the same folder of text to 2 neighbours of each chunk, with the same MiniLM (its own BERT is
  larger); autofaiss on the same vectors, given the memory that our index takes.

By default on 47,100 pages of Windows documentation (tech/win32 in OPENBOOK_DATA), where they are not there on the factbook. The
encoder computes in float32; where the processor has AMX, `openbook embedder compare` states what bfloat16 changes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from database_figures import plot, report, summarise
from measure import ROOT, environment, run_benchmark

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEED = 5
CODED_VECTORS = 30_000  # rotations are trained on them, twice
_STARTED = time.monotonic()


@dataclass(frozen=True)
class Size:
    """How much is measured, in documents or as named; a part's rounds end with its seconds, the whole with `limit_s`."""

    share: int
    rounds: int
    least: int
    part_seconds: float
    sizes: tuple[int, ...]
    sizes_with_encoder: tuple[int, ...]
    adding_rounds: int
    incremental: int
    peers: int
    vectors: int
    queries: int
    lists: int
    limit_s: int


QUICK = Size(
    share=8,
    rounds=3,
    least=1,
    part_seconds=60,
    sizes=(40, 400),
    sizes_with_encoder=(),
    adding_rounds=3,
    incremental=12,
    peers=12,
    vectors=4000,
    queries=200,
    lists=2048,
    limit_s=1200,
)
FULL = Size(
    share=100,
    rounds=5,
    least=3,
    part_seconds=1200,
    sizes=(38, 377, 3768, 47_100),
    sizes_with_encoder=(38, 377),
    adding_rounds=3,
    incremental=100,
    peers=60,
    vectors=200_000,
    queries=1000,
    lists=65_536,
    limit_s=6 * 3600,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 with all figures, 1 or 130 (Ctrl-C) without; nothing is written then."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a few minutes")
    parser.add_argument("--data", type=Path, metavar="FILE", help="JSON Lines, plain, .gz or .zst")
    parser.add_argument("--limit", type=int, metavar="DOCUMENTS", help="leave out what takes more documents")
    parser.add_argument("--peers", choices=("all", "none"), default="all", help="none measures ourselves alone")
    parser.add_argument("--model", help="folder or name of the encoder; by default the one that is served by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and all trials")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    if options.limit:
        size = limited(size, options.limit)

    def measure(work: Path) -> dict[str, Any]:
        from database_build import Book

        from openbook_core.weights import DEFAULT_EMBEDDER, DEFAULT_MODEL

        book = Book(options.data or default_data(), DEFAULT_MODEL, options.model or DEFAULT_EMBEDDER)
        return run(size, book, options.peers == "all", work)

    return run_benchmark(
        measure,
        report,
        limit_s=size.limit_s,
        json_file=options.json,
        plot=partial(plot, path=options.plot) if options.plot else None,
    )


def default_data() -> Path:
    """tech/win32 where there is one, else the factbook."""
    large = Path(os.environ.get("OPENBOOK_DATA", "data")) / "tech" / "win32.jsonl.zst"
    return large if large.exists() else ROOT / "examples" / "factbook" / "2015-11-18.jsonl.zst"


def limited(size: Size, documents: int) -> Size:
    """No part takes more than so many documents."""
    parts = {name: min(getattr(size, name), documents) for name in ("share", "incremental", "peers")}
    sizes = (*(each for each in size.sizes if each < documents), documents)
    encoded = tuple(each for each in size.sizes_with_encoder if each <= documents)
    return replace(size, **parts, sizes=sizes, sizes_with_encoder=encoded)


def run(size: Size, book: Any, peers: bool, work: Path) -> dict[str, Any]:
    """All parts, one after another: {figures, raw}."""
    import faiss
    from database_build import (
        NotingEncoder,
        measure_incremental,
        measure_incremental_large,
        measure_share,
        measure_sizes,
        settings_of_builds,
    )
    from database_child import DIMENSION
    from database_rates import measure_codecs, measure_parts
    from database_sides import spread

    begun, circumstances = time.monotonic(), environment()
    if peers:
        from database_sides import PEER
        from embedder_sides import require_peers

        require_peers((PEER,))
    raw: dict[str, Any] = {
        "command": " ".join(["python benchmarks/database.py", *sys.argv[1:]]),
        **circumstances,
        "versions": {name: version(name) for name in ("faiss-cpu", "torch", "tokenizers", "pyarrow", "numpy")},
        "threads": faiss.omp_get_max_threads(),
        "data": book.data.name,
        "model": book.model,
        "tokenizer": book.tokenizer,
        "size": asdict(size),
        "settings": settings_of_builds(),
    }
    encoder = NotingEncoder.load(book.model, dtype="float32")
    _say("encoder and builds in turns")
    limits = {"rounds": size.rounds, "budget_s": size.part_seconds, "least": size.least}
    raw["share"] = measure_share(book, size.share, encoder, _part(work, "share"), limits)
    real_ND = vectors_of(work / "share" / "share-0")
    if peers:
        raw["retro_pytorch"], raw["autofaiss"] = _measure_peers(size, book, encoder, real_ND, work)
        _clear(work, "peers")
    sizes = _part(work, "sizes")
    raw["sizes"] = measure_sizes(book, size.sizes, size.sizes_with_encoder, size.adding_rounds, sizes, _say)
    _say("incremental, encoder")
    raw["incremental"] = [measure_incremental(book, size.incremental, encoder, _part(work, "incremental"))]
    _say("incremental, random vectors")
    raw["incremental"].append(measure_incremental_large(book, raw["sizes"], sizes))
    _clear(work, "sizes")
    _say("Faiss' parts, and what codes lose")
    raw["parts"] = measure_parts(DIMENSION, size.lists, size.lists, SEED)
    vectors_ND = spread(real_ND, min(size.vectors, CODED_VECTORS), SEED)
    recall = measure_codecs(vectors_ND, size.queries)
    raw["codecs"] = {
        "vectors": f"{len(real_ND)} chunks' vectors and copies with noise, {len(vectors_ND)} in all",
        "recall": recall,
    }
    raw |= {"load_1m_after": round(os.getloadavg()[0], 2), "seconds": round(time.monotonic() - begun, 1)}
    return summarise(raw) | {"raw": raw}


def vectors_of(snapshot: Path) -> NDArray[np.float32]:
    """The vectors that a snapshot keeps, [n, d] in float32 from float16."""
    import numpy as np

    from openbook_database.manifest import Manifest

    dimension = Manifest.read(snapshot).contract.dimension
    files = sorted(snapshot.rglob("vectors.f16"))
    return np.concatenate([np.fromfile(file, "<f2").reshape(-1, dimension) for file in files]).astype(np.float32)


def _measure_peers(
    size: Size, book: Any, encoder: Any, real_ND: NDArray[np.float32], work: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    from database_sides import measure_index, ours_from_text, retro_pytorch, text_folder
    from measure import in_turns

    from openbook_core.tokenizer import Tokenizer

    folder, tokenizer = _part(work, "peers"), Tokenizer.load(book.tokenizer)
    texts = text_folder(book, size.peers, folder / "texts")
    outs: list[Path] = []

    def ours() -> dict[str, Any]:
        outs.append(folder / f"ours-{len(outs)}")
        return ours_from_text(texts, tokenizer, encoder, outs[-1])

    _say("from text to neighbours, ours and retro-pytorch")
    sides = {"ours": ours, "retro_pytorch": lambda: retro_pytorch(texts, book.model, folder)}
    trials = in_turns(sides, size.rounds, budget_s=size.part_seconds, least=1)
    characters = sum(len(file.read_text(encoding="utf-8")) for file in texts.iterdir())
    _say("an index of given vectors, ours and autofaiss")
    index = measure_index(real_ND, size.vectors, size.queries, tokenizer, folder)
    return {"documents": size.peers, "characters": characters, **trials}, index


def _part(work: Path, name: str) -> Path:
    (work / name).mkdir()
    return work / name


def _clear(work: Path, name: str) -> None:
    shutil.rmtree(work / name)


def _say(text: str) -> None:
    print(f"[database {time.monotonic() - _STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
