"""What a database will cost before it is built: recipe, disk, memory, shards, hours; each number with where it is from.

Bytes follow from the snapshot's format and are exact but for the documents' table and the graph (N chunks of m tokens, vectors of
d elements, L inverted lists, e elements after the rotation, t bytes of a token, D documents):

    tokens.bin 2 or 4 m N,  lengths.bin 2 N,  documents.bin 4 N,  vectors.f16 2 d N,  documents.arrow: measured bytes x D
    Flat 4 d N,  HNSW (4 d + 8 links + 16) N,  IVF (code + 16) N: the code, its row and its place by row
    quantiser 4 e L, with a graph 272 bytes more for each list, 4 d e of a rotation, 1024 e of codewords;  8 L of list sizes
    work folder while it is built: float32 vectors 4 d N, token rows (m t + 2 + 8) N, documents once more

While it cuts chunks a build holds the ids of all documents, to find one that comes twice: 100 bytes x D.

A replica wants the index of its shard and the shared quantiser in memory; text and tokens stay mapped, read for what is found:

    shards = ceil(index bytes / (memory - quantiser - a replica without a book))

Hours follow from measured rates:

    chunk        N / rate of the stage
    embed        N / (rate of the bare encoder x its share of the stage)
    train-index  10 iterations of k-means over S sampled rows, 2 e L S operations each, on one thread as builds train (the same
                 bytes on every machine); S: 64 for each list, as far as the memory holds 4 d S bytes, with a rotation
                 4 (d + e) S; OPQ: 50 iterations over at most 65,536 rows of 2 (2 d e + 256 e) operations; codewords: 25 of
                 512 e
    add          to lists: N / rate of walks through a graph of L lists, which grows with log L, or 2 e L N operations; codes
                 N / rate; bytes / rate of writing
    finish       bytes / rate of checksums; recall: 2 d N operations for each of 100 to 1,000 queries

Several machines divide embed between them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from openbook_core.config import FrozenConfig
from openbook_core.errors import ArgumentError, ConfigError
from openbook_database.index.recipe import LIST_ITERATIONS, Recipe, choose_recipe

FORMAT, MEASURED, EXTRAPOLATED, PUBLISHED = "format", "measured", "extrapolated", "published"
_RATES = Path(__file__).parent / "build" / "rates.json"
_GRAPH_ROW_BYTES = 16  # links above the lowest level, their number and their place
_GRAPH_BYTES = 2 * 32 * 4 + _GRAPH_ROW_BYTES  # of a list in a graph of 32 links
_CODEWORDS = 256
_REPLICA_BYTES = 141e6
_ID_BYTES = 100  # of a document: a set of 10^6 ids of 15 characters took 98 each
_EF_ASSIGN, _EF_CONSTRUCTION = 64, 100
# InstructRetro (arXiv 2310.07713): 6.22 M chunks an hour of one A100 with BERT-large. Smaller encoders are quicker.
_GPU_ENCODE_PER_S = 1_728.0
# Half of the 19.5 TFLOP/s in float32 of one A100, the peak that NVIDIA states.
_GPU_FLOPS = 9.75e12
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Rates(FrozenConfig):
    """Rates of one machine, as `benchmarks/database.py --json` writes them; `*_flops` are operations per second."""

    machine: str
    date: str
    commit: str
    command: str
    load: float
    model: str
    dtype: str
    data: str
    chunks_per_document: float = Field(gt=0)
    document_bytes: float = Field(gt=0, description="of documents.arrow")
    chunk_per_s: float = Field(gt=0)
    encode_per_s: float = Field(gt=0, description="chunks of 64 tokens, the bare encoder")
    embed_share: float = Field(gt=0, le=1, description="of the embed stage that is the encoder")
    write_bytes_per_s: float = Field(gt=0)
    finish_bytes_per_s: float = Field(gt=0)
    build_peak_mb: float = Field(gt=0, description="memory of a build that is no file's")
    assign_flops: float = Field(gt=0)
    assign_flops_one_thread: float = Field(gt=0)
    graph_lists: int = Field(gt=1)
    graph_assign_per_s: float = Field(gt=0)
    codes_per_s: float = Field(gt=0)
    code_recall: dict[str, float] = Field(description="recall@10 when every row is compared by its code")
    code_recall_vectors: str

    @classmethod
    def read(cls, path: Path | None = None) -> Rates:
        """The rates in a benchmark's result, or those that come with Openbook; ConfigError where there are none."""
        file = path or _RATES
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"rates: {file} cannot be read: {error}", field="rates") from error
        found = record.get("rates", record) if isinstance(record, dict) else record
        if not isinstance(found, dict):
            raise ConfigError(f"rates: {file} holds no rates: give a result of benchmarks/database.py", field="rates")
        return cls.parse(found, source=str(file))


@dataclass(frozen=True)
class Figure:
    """A number with where it is from: `FORMAT`, `MEASURED`, `EXTRAPOLATED` or `PUBLISHED`, and how it follows."""

    value: float
    source: str
    how: str


@dataclass(frozen=True)
class Plan:
    """`disk` and `work` in bytes by file, `memory` in bytes, `hours` by machine and stage."""

    chunks: int
    dimension: int
    recall: float
    recipe: Recipe
    recall_note: str
    disk: dict[str, Figure]
    work: dict[str, Figure]
    memory: dict[str, Figure]
    shards: Figure
    hours: dict[str, dict[str, Figure]]
    rates: Rates

    @property
    def disk_bytes(self) -> float:
        return sum(figure.value for figure in self.disk.values())


def make_plan(
    chunks: int,
    recall: float,
    rates: Rates,
    *,
    dimension: int = 384,
    memory: float = 64e9,
    gpu: bool = False,
    chunk_length: int = 64,
    token_bytes: int = 2,
    documents: int | None = None,
) -> Plan:
    """The plan; ArgumentError naming the field for what cannot be.

    `memory`: bytes of the machine that serves a shard, and of the one that builds, which `openbook db build --memory` is to be
    told. `documents`: by default from the rates' corpus.
    """
    if chunks < 1:
        raise ArgumentError(f"chunks: must be at least 1, given {chunks}", field="chunks")
    if not 0 < recall <= 1:
        raise ArgumentError(f"recall: must be above 0 and at most 1, given {recall}", field="recall")
    if dimension < 1:
        raise ArgumentError(f"dimension: must be at least 1, given {dimension}", field="dimension")
    recipe, note = choose(chunks, dimension, recall, rates, memory)
    count = chunks / rates.chunks_per_document if documents is None else documents
    disk = {
        "tokens.bin": Figure(
            token_bytes * chunk_length * chunks, FORMAT, f"{chunk_length} tokens of {token_bytes} bytes"
        ),
        "lengths.bin": Figure(2 * chunks, FORMAT, "2 bytes a chunk"),
        "documents.bin": Figure(4 * chunks, FORMAT, "4 bytes a chunk"),
        "vectors.f16": Figure(2 * dimension * chunks, FORMAT, f"{dimension} elements of 2 bytes"),
        "documents.arrow": Figure(
            rates.document_bytes * count,
            MEASURED,
            f"{rates.document_bytes:.0f} bytes a document, {chunks / count:.1f} chunks each, as {rates.data}",
        ),
        "index": Figure(row_bytes(recipe, dimension) * chunks, FORMAT, f"{row_bytes(recipe, dimension)} bytes a chunk"),
        "quantiser": Figure(
            quantiser_bytes(recipe, dimension), FORMAT, f"{recipe.lists:,} lists, shared by all shards"
        ),
    }
    work = {
        "vectors": Figure(4 * dimension * chunks, FORMAT, f"{dimension} elements of 4 bytes"),
        "chunks": Figure((chunk_length * token_bytes + 10) * chunks, FORMAT, "tokens, lengths, headings' offsets"),
        "documents": Figure(disk["documents.arrow"].value, MEASURED, "as documents.arrow"),
    }
    sample = recipe.sample_size(chunks, None, dimension, int(memory))
    shards, needed = _shards(disk, memory, sample * recipe.sample_row_bytes(dimension), rates)
    needed["ids while chunking"] = Figure(_ID_BYTES * count, MEASURED, f"{_ID_BYTES} bytes a document")
    if not recipe.exact:
        note += f"; build with --memory {memory / 1e9:g}GB --shards {shards.value:.0f}"
    size = sum(figure.value for figure in disk.values())
    hours = {rates.machine: _hours(chunks, dimension, recipe, sample, size, rates, gpu=False)}
    if gpu:
        hours["the same with one GPU"] = _hours(chunks, dimension, recipe, sample, size, rates, gpu=True)
    return Plan(chunks, dimension, recall, recipe, note, disk, work, needed, shards, hours, rates)


def choose(chunks: int, dimension: int, recall: float, rates: Rates, memory: float = 64e9) -> tuple[Recipe, str]:
    """What a build with `--memory` chooses by itself: for as few shards as hold the index, or where its codes cannot reach the
    recall for as many as hold finer ones; and why."""
    recipe, settled = choose_recipe(chunks, dimension, int(memory)), False
    while not settled:  # where codes need several shards, finer ones may fit into as many
        index, quantiser = row_bytes(recipe, dimension) * chunks, quantiser_bytes(recipe, dimension)
        chosen = choose_recipe(chunks, dimension, int(memory), _shard_count(index, quantiser, memory))
        recipe, settled = chosen, chosen == recipe
    if recipe.exact:
        return recipe, "exact: recall is 1 by definition"
    code = f"PQ{recipe.codes}" if recipe.codes else recipe.codec
    best = rates.code_recall.get(code)
    if best is None:
        return recipe, f"what {code} codes keep was not measured; a build measures it and chooses nprobe"
    if best >= recall or recipe.codec == "SQ8":
        return (
            recipe,
            f"{code} codes keep {best:.3f} at best (measured, {rates.code_recall_vectors}); a build chooses nprobe",
        )
    finer = choose_recipe(chunks, dimension, int(memory), chunks)
    return finer, (
        f"for one shard auto takes {recipe.factory}: its codes keep {best:.3f} at best (measured, {rates.code_recall_vectors}); "
        f"SQ8 keeps {rates.code_recall.get('SQ8', 1.0):.3f}, which auto takes for enough shards"
    )


def row_bytes(recipe: Recipe, dimension: int) -> int:
    """Of the index for each chunk, heads of lists left out."""
    return recipe.bytes_per_row(dimension) + (_GRAPH_ROW_BYTES if recipe.kind == "hnsw" else 0)


def quantiser_bytes(recipe: Recipe, dimension: int) -> int:
    """Of quantiser.faiss and list_sizes.bin."""
    if not recipe.trained:
        return 0
    inner = recipe.inner_dimension(dimension)
    size = recipe.lists * (4 * inner + 8 + (_GRAPH_BYTES if recipe.coarse_links else 0))
    size += 4 * dimension * inner if recipe.opq else 0
    return size + (4 * _CODEWORDS * inner if recipe.codes else 8 * inner if recipe.codec == "SQ8" else 0)


def parse_bytes(text: str, field: str) -> float:
    """ "64GB", "512 MiB", "2e9"; ArgumentError naming `field` for anything else."""
    found = re.fullmatch(r"([\d.]+(?:e[+]?\d+)?) ?([kmgt]?i?)b?", text.strip().lower())
    if not found or found[2] not in _UNITS:
        raise ArgumentError(f"{field}: {text!r} is no size; give for example 64GB or 512MiB", field=field)
    try:
        return float(found[1]) * _UNITS[found[2]]
    except ValueError as error:
        raise ArgumentError(f"{field}: {text!r} is no size; give for example 64GB", field=field) from error


def _shards(
    disk: dict[str, Figure], memory: float, sample_bytes: float, rates: Rates
) -> tuple[Figure, dict[str, Figure]]:
    index, quantiser = disk["index"].value, disk["quantiser"].value
    count = _shard_count(index, quantiser, memory)
    needed = {
        "index of a shard": Figure(index / count, FORMAT, f"1/{count} of the index"),
        "quantiser": Figure(quantiser, FORMAT, "whole in each shard"),
        "replica": Figure(_REPLICA_BYTES, MEASURED, "without a book: docs/results/first_path.json"),
        "while building": Figure(
            rates.build_peak_mb * 1e6, MEASURED, "what is no file's, without the index of the shard that is written"
        ),
        "training sample": Figure(sample_bytes, FORMAT, "vectors, and beside them the rotated ones"),
    }
    return Figure(count, FORMAT, f"index over what {memory / 1e9:g} GB leave for it"), needed


def _shard_count(index: float, quantiser: float, memory: float) -> int:
    room = memory - quantiser - _REPLICA_BYTES
    if room <= 0:
        raise ArgumentError(
            f"memory: {memory / 1e9:.1f} GB do not hold the quantiser that all shards share "
            f"({quantiser / 1e9:.1f} GB) and a replica's own {_REPLICA_BYTES / 1e9:.2f} GB",
            field="memory",
        )
    return max(1, math.ceil(index / room))


def _hours(
    chunks: int, dimension: int, recipe: Recipe, sample: int, size: float, rates: Rates, *, gpu: bool
) -> dict[str, Figure]:
    inner = recipe.inner_dimension(dimension)
    flops, kind = (_GPU_FLOPS, EXTRAPOLATED) if gpu else (rates.assign_flops, EXTRAPOLATED)
    stages = {"chunk": _figure(chunks / rates.chunk_per_s, MEASURED, f"{rates.chunk_per_s:,.0f} chunks/s")}
    if gpu:
        stages["embed"] = _figure(
            chunks / _GPU_ENCODE_PER_S,
            PUBLISHED,
            f"{_GPU_ENCODE_PER_S:,.0f} chunks/s of BERT-large on an A100, InstructRetro",
        )
    else:
        rate = rates.encode_per_s * rates.embed_share
        stages["embed"] = _figure(
            chunks / rate, MEASURED, f"{rate:,.1f} chunks/s, {rates.model.split('/')[-1]} in {rates.dtype}"
        )
    if recipe.trained:
        training = _GPU_FLOPS if gpu else rates.assign_flops_one_thread
        rotation, iteration, codes = recipe.training_work(dimension, sample)
        work = rotation + LIST_ITERATIONS * iteration + codes
        how = f"{sample:,} rows, {sample / recipe.lists:.0f} for each list; "
        how += f"{work:.1e} operations at {training / 1e9:,.0f} G/s" + ("" if gpu else " on one thread")
        stages["train-index"] = _figure(work / training, kind, how)
    stages["add"] = _add(chunks, recipe, inner, size, rates, flops, kind)
    queries = min(1000, max(100, 2_000_000_000 // chunks))
    recall_s = 0.0 if recipe.exact else 2.0 * dimension * chunks * queries / rates.assign_flops
    stages["finish"] = _figure(
        size / rates.finish_bytes_per_s + recall_s,
        EXTRAPOLATED,
        f"checksums at {rates.finish_bytes_per_s / 1e6:,.0f} MB/s" + (f", {queries} exact queries" if recall_s else ""),
    )
    return stages


def _add(chunks: int, recipe: Recipe, inner: int, size: float, rates: Rates, flops: float, kind: str) -> Figure:
    seconds, parts = size / rates.write_bytes_per_s, [f"writing at {rates.write_bytes_per_s / 1e6:,.0f} MB/s"]
    source = MEASURED if recipe.exact else EXTRAPOLATED
    walk: Callable[[int], float] = lambda nodes: (  # noqa: E731
        rates.graph_assign_per_s * math.log(rates.graph_lists) / math.log(max(nodes, 2))
    )
    if recipe.kind == "hnsw":
        rate = walk(chunks) * _EF_ASSIGN / _EF_CONSTRUCTION
        seconds, parts = seconds + chunks / rate, [*parts, f"{rate:,.0f} rows/s into the graph"]
    elif recipe.coarse_links:
        rate = walk(recipe.lists)
        seconds, parts = seconds + chunks / rate, [*parts, f"{rate:,.0f} rows/s to their lists"]
    elif recipe.trained:
        work, source = 2.0 * inner * recipe.lists * chunks, kind
        seconds, parts = seconds + work / flops, [*parts, f"{work:.1e} operations at {flops / 1e9:,.0f} G/s"]
    if recipe.codes:
        seconds, parts = seconds + chunks / rates.codes_per_s, [*parts, f"{rates.codes_per_s:,.0f} codes/s"]
    return _figure(seconds, source, ", ".join(parts))


def _figure(seconds: float, source: str, how: str) -> Figure:
    return Figure(seconds / 3600, source, how)


def plan_record(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values."""

    def figures(named: dict[str, Figure]) -> dict[str, Any]:
        return {name: vars(figure) for name, figure in named.items()}

    return {
        "chunks": plan.chunks,
        "dimension": plan.dimension,
        "recall": plan.recall,
        "index": plan.recipe.factory,
        "recall_note": plan.recall_note,
        "disk_bytes": plan.disk_bytes,
        "disk": figures(plan.disk),
        "work": figures(plan.work),
        "memory": figures(plan.memory),
        "shards": vars(plan.shards),
        "hours": {machine: figures(stages) for machine, stages in plan.hours.items()},
        "rates": plan.rates.model_dump(mode="json"),
    }
