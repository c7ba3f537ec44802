"""Building a book: against the bare encoder, bare Faiss, retro-pytorch and autofaiss; memory and cost by size.

    python benchmarks/database.py [--quick] [--parts share,sizes,...] [--data FILE] [--limit DOCUMENTS] [--json FILE]

In parts, each written to the file of `--json` as it ends, so that `--parts` repeats one and keeps the others:

- share: chunks per second of a build over those of the encoder alone on the same lists of texts, in turns; and a build from a
  base with 1% of the documents changed;
- sizes: each in a process of its own, peak memory, seconds by stage, and in turns our index files and Faiss alone from the
  same vectors with the same recipe and threads. They get random vectors, near each other in one document, instead of an encoder
  (hours of it), and say so. From the largest a build with 1% of the documents changed;
- torch: builds with a small random BERT, for the memory that an encoder in the process adds;
- peers: retro-pytorch from the same folder of text to 2 neighbours of each chunk, with the same MiniLM (its own BERT is
  larger); autofaiss on the same vectors, given the memory that our index takes;
- adding: our index files and Faiss alone, by recipe, on the same vectors;
- codes: rates of Faiss' parts, and what codes lose, for `openbook db plan`.

By default on 47,100 pages of Windows documentation (tech/win32 in OPENBOOK_DATA), where they are not there on the factbook. The
encoder computes in float32; where the processor has AMX, `openbook embedder compare` states what bfloat16 changes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from database_figures import PARTS, report, summarise
from database_plot import plot
from measure import ROOT, environment, run_benchmark, write_result

if TYPE_CHECKING:
    import numpy as np
    from database_build import Book, NotingEncoder
    from numpy.typing import NDArray

SEED = 5
_STARTED = time.monotonic()


@dataclass(frozen=True)
class Size:
    """How much is measured, in documents or as named; a part's rounds end with its seconds, the whole with `limit_s`."""

    share: int
    rounds: int
    least: int
    part_seconds: float
    incremental: int
    sizes: tuple[int, ...]
    adding_rounds: int
    torch: tuple[int, ...]
    peers: int
    vectors: int
    queries: int
    added: int
    added_lists: int
    coded: int
    lists: int
    limit_s: int


QUICK = Size(
    share=8,
    rounds=3,
    least=1,
    part_seconds=60,
    incremental=12,
    sizes=(40, 400),
    adding_rounds=3,
    torch=(40,),
    peers=12,
    vectors=4000,
    queries=200,
    added=20_000,
    added_lists=128,
    coded=4000,
    lists=2048,
    limit_s=1200,
)
# About 50 minutes on two cores.
FULL = Size(
    share=60,
    rounds=4,
    least=3,
    part_seconds=240,
    incremental=100,
    sizes=(38, 377, 3768, 47_100),
    adding_rounds=3,
    torch=(377, 3768),
    peers=60,
    vectors=200_000,
    queries=1000,
    added=131_072,
    added_lists=1024,
    coded=20_000,
    lists=16_384,
    limit_s=2 * 3600,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 with all figures, 1 or 130 (Ctrl-C) without: the parts that ended are written all the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a few minutes")
    parser.add_argument("--parts", type=_parts, metavar="NAME,...", help=f"of {','.join(PARTS)}; by default all")
    parser.add_argument("--data", type=Path, metavar="FILE", help="JSON Lines, plain, .gz or .zst")
    parser.add_argument("--limit", type=int, metavar="DOCUMENTS", help="leave out what takes more documents")
    parser.add_argument("--peers", choices=("all", "none"), default="all", help="none measures ourselves alone")
    parser.add_argument("--model", help="folder or name of the encoder; by default the one that is served by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and all trials, part by part")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    if options.limit:
        size = limited(size, options.limit)
    parts = [part for part in options.parts or PARTS if part != "peers" or options.peers == "all"]
    if not parts:
        parser.error("no part is left without peers")
    kept = (
        json.loads(options.json.read_text())["raw"] if options.parts and options.json and options.json.exists() else {}
    )

    def measure(work: Path) -> dict[str, Any]:
        from database_build import Book

        from openbook_core.weights import DEFAULT_EMBEDDER, DEFAULT_MODEL

        book = Book(options.data or default_data(), DEFAULT_MODEL, options.model or DEFAULT_EMBEDDER)
        save = partial(write_result, options.json) if options.json else lambda result: None
        return run(size, book, parts, work, kept, save)

    return run_benchmark(
        measure,
        report,
        limit_s=size.limit_s,
        json_file=options.json,
        plot=partial(plot, path=options.plot) if options.plot else None,
    )


def _parts(text: str) -> list[str]:
    unknown = set(text.split(",")) - set(PARTS)
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} not known; known: {', '.join(PARTS)}")
    return [part for part in PARTS if part in text.split(",")]


def default_data() -> Path:
    """tech/win32 where there is one, else the factbook."""
    large = Path(os.environ.get("OPENBOOK_DATA", "data")) / "tech" / "win32.jsonl.zst"
    return large if large.exists() else ROOT / "examples" / "factbook" / "2015-11-18.jsonl.zst"


def limited(size: Size, documents: int) -> Size:
    """No part takes more than so many documents."""
    single = {name: min(getattr(size, name), documents) for name in ("share", "incremental", "peers")}
    several = {
        name: (*(each for each in getattr(size, name) if each < documents), documents) for name in ("sizes", "torch")
    }
    return replace(size, **single, **several)


def run(
    size: Size,
    book: Book,
    parts: Sequence[str],
    work: Path,
    kept: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """The `parts`, one after another, beside those `kept` from an earlier run: {figures, raw}; `save` gets the same after each
    part."""
    if "peers" in parts:
        from database_sides import PEER
        from embedder_sides import require_peers

        require_peers((PEER,))
    raw = dict(kept or {})
    bench = _Bench(size, book, work)
    for part in parts:
        folder = work / part
        folder.mkdir(exist_ok=True)
        circumstances, begun = _circumstances(size, book), time.monotonic()
        found = getattr(bench, part)(folder)
        after = {"load_1m_after": round(os.getloadavg()[0], 2), "seconds": round(time.monotonic() - begun, 1)}
        raw[part] = {"run": circumstances | after, **found}
        if folder != bench.real:
            shutil.rmtree(folder)
        save(summarise(raw) | {"raw": raw})
    return summarise(raw) | {"raw": raw}


def _circumstances(size: Size, book: Book) -> dict[str, Any]:
    import faiss
    from database_build import settings_of_builds

    return {
        "command": " ".join(["python benchmarks/database.py", *sys.argv[1:]]),
        **environment(),
        "versions": {name: version(name) for name in ("faiss-cpu", "torch", "tokenizers", "pyarrow", "numpy")},
        "threads": faiss.omp_get_max_threads(),
        "data": book.data.name,
        "model": book.model,
        "tokenizer": book.tokenizer,
        "size": asdict(size),
        "settings": settings_of_builds(),
    }


class _Bench:
    """The parts. `real`: the folder of a snapshot with vectors of the encoder, once a part has built one."""

    real: Path | None = None

    def __init__(self, size: Size, book: Book, work: Path) -> None:
        self._size, self._book, self._work = size, book, work
        self._loaded: NotingEncoder | None = None

    def share(self, folder: Path) -> dict[str, Any]:
        from database_build import measure_incremental, measure_share

        _say("encoder and builds in turns")
        size = self._size
        limits = {"rounds": size.rounds, "budget_s": size.part_seconds, "least": size.least}
        found = measure_share(self._book, size.share, self._encoder(), folder, limits)
        self.real = folder
        _say("incremental, encoder")
        found["incremental"] = measure_incremental(self._book, size.incremental, self._encoder(), folder)
        return found

    def sizes(self, folder: Path) -> dict[str, Any]:
        from database_build import measure_incremental_large, measure_sizes
        from database_child import RANDOM

        found = measure_sizes(self._book, self._size.sizes, RANDOM, self._size.adding_rounds, folder, _say)
        _say("incremental, random vectors")
        return {"builds": found, "incremental": measure_incremental_large(self._book, found, folder)}

    def torch(self, folder: Path) -> dict[str, Any]:
        from database_build import measure_sizes, random_bert

        model = str(random_bert(folder / "bert"))
        return {"builds": measure_sizes(self._book, self._size.torch, model, 0, folder, _say)}

    def peers(self, folder: Path) -> dict[str, Any]:
        from database_sides import measure_from_text, measure_index

        from openbook_core.tokenizer import Tokenizer

        size, tokenizer = self._size, Tokenizer.load(self._book.tokenizer)
        _say("from text to neighbours, ours and retro-pytorch")
        limits = {"rounds": size.rounds, "budget_s": size.part_seconds, "least": 1}
        text = measure_from_text(self._book, size.peers, tokenizer, self._encoder(), folder, limits)
        _say("an index of given vectors, ours and autofaiss")
        index = measure_index(self._vectors(), size.vectors, size.queries, tokenizer, folder)
        return {"retro_pytorch": text, "autofaiss": index}

    def adding(self, folder: Path) -> dict[str, Any]:
        from database_rates import measure_adding
        from database_sides import spread

        size = self._size
        vectors_ND = spread(self._vectors(), size.added, SEED)
        _say(f"adding {size.added} vectors, by recipe")
        return {
            "vectors": self._spread(size.added),
            "rows": size.added,
            "recipes": measure_adding(vectors_ND, size.added_lists, 2 * size.adding_rounds - 1, folder),
        }

    def codes(self, folder: Path) -> dict[str, Any]:
        from database_child import DIMENSION
        from database_rates import measure_codecs, measure_parts
        from database_sides import spread

        size = self._size
        _say("Faiss' parts, and what codes lose")
        rates = measure_parts(DIMENSION, size.lists, size.lists, SEED)
        recall = measure_codecs(spread(self._vectors(), size.coded, SEED), size.queries)
        return {"rates": rates, "vectors": self._spread(size.coded), "recall": recall}

    def _encoder(self) -> NotingEncoder:
        from database_build import NotingEncoder

        if self._loaded is None:
            self._loaded = NotingEncoder.load(self._book.model, dtype="float32")
        return self._loaded

    def _vectors(self) -> NDArray[np.float32]:
        """Of the encoder, from the builds of `share`, or of a build for the purpose where that part was left out."""
        from database_build import build_share

        if self.real is None:
            self.real = self._work / "share"
            self.real.mkdir()
            build_share(self._book, self._size.share, self._encoder(), self.real / "share-0")
        return vectors_of(self.real / "share-0")

    def _spread(self, count: int) -> str:
        return f"{len(self._vectors())} chunks' vectors and copies with noise, {count} in all"


def vectors_of(snapshot: Path) -> NDArray[np.float32]:
    """The vectors that a snapshot keeps, [n, d] in float32 from float16."""
    import numpy as np

    from openbook_database.manifest import Manifest

    dimension = Manifest.read(snapshot).contract.dimension
    files = sorted(snapshot.rglob("vectors.f16"))
    return np.concatenate([np.fromfile(file, "<f2").reshape(-1, dimension) for file in files]).astype(np.float32)


def _say(text: str) -> None:
    print(f"[database {time.monotonic() - _STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
