"""Builds against the bare encoder, by size, and from a base."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
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
from openbook_core.weights import DEFAULT_EMBEDDER, resolve_model
from openbook_database.build.run import BuildResult, build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.encoder import Encoder


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


def build_share(book: Book, documents: int, encoder: Encoder, out: Path) -> BuildResult:
    """One build of the first documents with the encoder."""
    part = book.part(documents, out.with_name("share.jsonl"))
    tokenizer = Tokenizer.load(book.tokenizer)
    return build_snapshot([part], out, database="bench", tokenizer=tokenizer, encoder=encoder)


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
    book: Book, sizes: Sequence[int], encoder: str, adding_rounds: int, work: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """For each number of documents a build in a process of its own, with `encoder` as `database_child` takes it."""
    found = []
    for documents in sizes:
        say(f"a build of {documents} documents, {'random vectors' if encoder == RANDOM else 'a random BERT'}")
        part, out = book.part(documents, work / "size.jsonl"), work / f"size-{documents}"
        spec = {"source": str(part), "out": str(out), "tokenizer": book.tokenizer, "encoder": encoder}
        found.append(run_child(spec | {"adding_rounds": adding_rounds}))
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
    return {"changed_documents": -(-documents // 100), "full": full, "incremental": changed}


def measure_incremental_large(book: Book, sizes: Sequence[dict[str, Any]], work: Path) -> dict[str, Any]:
    """The largest build of `measure_sizes`, and one from it as base, in its own process."""
    full = max(sizes, key=lambda each: int(each["documents"]))
    documents, base = full["documents"], work / f"size-{full['documents']}"
    spec = {"tokenizer": book.tokenizer, "encoder": RANDOM, "out": str(work / "incremental"), "base": str(base)}
    changed = run_child({**spec, **_changed(book, documents, work)})
    return {"changed_documents": -(-documents // 100), "full": full, "incremental": changed}


def _changed(book: Book, documents: int, work: Path) -> dict[str, str]:
    return {"source": str(book.part(documents, work / "after.jsonl", changed_every=100))}


def random_bert(folder: Path) -> Path:
    """A BERT of two layers of width 128 with random weights and the tokenizer of the default encoder."""
    import torch
    from transformers import BertConfig, BertModel

    source = resolve_model(DEFAULT_EMBEDDER)
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json", "modules.json"):
        shutil.copy(source / name, folder / name)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    torch.manual_seed(0)
    vocabulary = json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    BertModel(BertConfig(vocab_size=vocabulary, **shape)).save_pretrained(folder)
    return folder


def settings_of_builds() -> dict[str, Any]:
    """What the builds were told: nothing, so the defaults."""
    return BuildSettings().model_dump(mode="json")
