"""Builds against the bare encoder, by size, and from a base."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from database_child import RANDOM, run_child
from database_child import build as build_here
from measure import in_turns, processor_s
from numpy.typing import NDArray
from timed_encoder import TimedEncoder

from openbook_core.tokenizer import Tokenizer
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.encoder import Encoder

RANDOM_VECTORS = "random unit vectors"


class NotingEncoder(TimedEncoder):
    """Keeps the lists of texts that a build has encoded."""

    noted: list[list[str]] | None = None

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self.noted is not None:
            self.noted.append(list(texts))
        return super().encode(texts)


@dataclass(frozen=True)
class Book:
    """What is built: rows of JSON Lines at `data`, with what."""

    data: Path
    tokenizer: str
    model: str

    def rows(self, documents: int | None) -> Iterator[dict[str, Any]]:
        from openbook_trainer.rows import read_rows

        return (row for _, row in itertools.islice(read_rows(self.data), documents))

    def part(self, documents: int | None, file: Path, *, changed_every: int = 0) -> Path:
        """The first documents in a file of their own, so that reading costs what it costs for them alone; every n-th with
        a sentence more at its end where `changed_every` is given."""
        with file.open("w", encoding="utf-8") as stream:
            for number, row in enumerate(self.rows(documents)):
                if changed_every and number % changed_every == 0:
                    row = row | {"text": row["text"] + "\n\nThis page has been changed since."}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        return file


def measure_share(
    book: Book, documents: int, encoder: NotingEncoder, work: Path, limits: dict[str, Any]
) -> dict[str, Any]:
    """Builds, in turns with the bare encoder on the lists of texts that the first build gave it."""
    tokenizer = Tokenizer.load(book.tokenizer)
    part, outs = book.part(documents, work / "share.jsonl"), itertools.count()
    lists: list[list[str]] = []

    def build() -> dict[str, Any]:
        out = work / f"share-{next(outs)}"
        encoder.reset()
        encoder.noted = [] if not lists else None
        start, cpu = time.perf_counter(), processor_s()
        built = build_snapshot([part], out, database="bench", tokenizer=tokenizer, encoder=encoder)
        wall_s, cpu_s = time.perf_counter() - start, processor_s() - cpu
        lists.extend(encoder.noted or ())
        encoder.noted = None
        return {
            "chunks": built.chunks,
            "documents": built.documents,
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "encode_s": encoder.encode_s,
            "network_s": encoder.network_s,
            "stage_s": built.seconds,
        }

    def bare() -> dict[str, float]:
        start, cpu = time.perf_counter(), processor_s()
        for texts in lists:
            encoder.encode(texts)
        return {"wall_s": time.perf_counter() - start, "cpu_s": processor_s() - cpu}

    first = build()  # warms both, and notes the lists
    trials = in_turns({"build": build, "bare": bare}, **limits)
    return {
        "dtype": encoder.dtype,
        "texts": sum(map(len, lists)),
        "lists": len(lists),
        "warm_up": first,
        **trials,
    }


def measure_sizes(
    book: Book, sizes: Sequence[int], with_encoder: Sequence[int], adding_rounds: int, work: Path, say: Any
) -> list[dict[str, Any]]:
    """For each number of documents a build of its own process: with the random encoder, and for some with the real one."""
    found = []
    for encoder, documents in [(RANDOM, each) for each in sizes] + [(book.model, each) for each in with_encoder]:
        say(f"a build of {documents} documents, {'random vectors' if encoder == RANDOM else 'encoder'}")
        part, out = book.part(documents, work / "size.jsonl"), work / f"size-{encoder == RANDOM}-{documents}"
        spec = {"source": str(part), "out": str(out), "tokenizer": book.tokenizer, "encoder": encoder}
        child = run_child(spec | {"adding_rounds": adding_rounds if encoder == RANDOM else 0})
        found.append({"encoder": RANDOM_VECTORS if encoder == RANDOM else encoder, **child})
        part.unlink()
    return found


def measure_incremental(book: Book, documents: int, encoder: Encoder, work: Path) -> dict[str, Any]:
    """A full build with the encoder, and one from it as base with a hundredth of the documents changed."""
    spec = {"tokenizer": book.tokenizer, "encoder": book.model}
    before, base = book.part(documents, work / "before.jsonl"), work / "full"
    full = build_here({**spec, "source": str(before), "out": str(base)}, loaded=encoder)
    changed = build_here(
        {**spec, **_changed(book, documents, work), "out": str(work / "incremental"), "base": str(base)}, loaded=encoder
    )
    return {"encoder": book.model, "changed_documents": -(-documents // 100), "full": full, "incremental": changed}


def measure_incremental_large(book: Book, sizes: Sequence[dict[str, Any]], work: Path) -> dict[str, Any]:
    """The largest build with random vectors of `measure_sizes`, and one from it as base, in its own process."""
    full = max((each for each in sizes if each["encoder"] == RANDOM_VECTORS), key=lambda each: each["documents"])
    documents, base = full["documents"], work / f"size-True-{full['documents']}"
    spec = {"tokenizer": book.tokenizer, "encoder": RANDOM, "out": str(work / "incremental"), "base": str(base)}
    changed = run_child({**spec, **_changed(book, documents, work)})
    return {"encoder": RANDOM_VECTORS, "changed_documents": -(-documents // 100), "full": full, "incremental": changed}


def _changed(book: Book, documents: int, work: Path) -> dict[str, str]:
    return {"source": str(book.part(documents, work / "after.jsonl", changed_every=100))}


def settings_of_builds() -> dict[str, Any]:
    """What the builds were told: nothing, so the defaults."""
    return BuildSettings().model_dump(mode="json")
