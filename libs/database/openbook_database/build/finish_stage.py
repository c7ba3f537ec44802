"""Stage "finish": documents, tokenizer, golden queries, checksums, manifest; then one rename."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_core.files import sync
from openbook_core.probes import PROBE_TEXTS
from openbook_core.tokenizer import Tokenizer
from openbook_database.build.chunk_stage import Position, token_dtype
from openbook_database.build.corpus import Corpus
from openbook_database.build.document_file import write_document_file
from openbook_database.build.embed_stage import encode_checked, read_vectors
from openbook_database.build.recall import Part, measure
from openbook_database.build.settings import BuildSettings
from openbook_database.build.shares import Links, shared_entries, shares_quantiser
from openbook_database.build.workspace import Workspace
from openbook_database.contract import METRIC_INNER_PRODUCT, Contract
from openbook_database.documents import DocumentTable
from openbook_database.encoder import Encoder
from openbook_database.files import clear_write_errors, file_digests, write_atomically, write_bytes_atomically
from openbook_database.index.files import LIST_SIZES, LISTS, QUANTISER, open_index, write_list_sizes
from openbook_database.index.ivf import list_reach
from openbook_database.index.quantiser import Quantiser
from openbook_database.index.recipe import Recipe
from openbook_database.manifest import (
    MANIFEST_NAME,
    FileEntry,
    GoldenQueries,
    IndexEntry,
    Manifest,
    Probes,
    ShardEntry,
    totals,
)
from openbook_database.scoring import merge
from openbook_database.shard import Shard, shard_folder

_GOLDEN_K = 10
_CHANGED = 0.02
# How far the stage is after each of its parts, as a share: about what they take of the time.
_DOCUMENTS, _SHARDS, _RECALL, _FILES = 0.05, 0.2, 0.7, 0.95


def run_finish_stage(
    corpus: Corpus,
    ranges: Sequence[tuple[int, int]],
    chunked: Position,
    recipe: Mapping[str, Any],
    index: Recipe,
    tokenizer: Tokenizer,
    encoder: Encoder,
    settings: BuildSettings,
    work: Workspace,
    links: Links | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Manifest:
    """Complete the snapshot in the work folder, with its manifest as the last file; `progress` is told the share that is
    done, 0 to 1."""
    work.sweep()
    write_document_file(work.snapshot / "documents.arrow", corpus, settings.fields.metadata, work.columns)
    _write_tokenizer(work.snapshot / "tokenizer", tokenizer)
    manifest_path = work.snapshot / MANIFEST_NAME
    manifest_path.unlink(missing_ok=True)
    folders = [work.snapshot / shard_folder(number) for number in range(len(ranges))]
    progress(_DOCUMENTS)
    entries = []
    for number, (ends, folder) in enumerate(zip(ranges, folders, strict=True)):
        link = (links or {}).get(number)
        entries.append(_shard_entry(corpus, *ends, encoder.dimension, settings, work, index, folder, link))
        progress(_DOCUMENTS + (_SHARDS - _DOCUMENTS) * (number + 1) / len(ranges))
    shards = tuple(entries)
    if index.trained:
        write_atomically(work.snapshot / LIST_SIZES, lambda path: write_list_sizes(path, folders))
    probes_ND = encode_checked(encoder, list(PROBE_TEXTS), "the probe texts")
    sources = tuple(
        {**recipe["sources"][str(place)], **asdict(count), "licences": list(count.licences)}
        for place, count in enumerate(chunked.counts)
    )
    entry = _index_entry(
        index, shards, folders, corpus, encoder.dimension, settings, work, _within(progress, _SHARDS, _RECALL)
    )
    shared = shared_entries(corpus.base, links or {})
    manifest = Manifest(
        database=recipe["database"],
        contract=Contract(
            tokenizer=tokenizer.fingerprint,
            embedder=encoder.fingerprint,
            passage_template=settings.passage_template,
            dimension=encoder.dimension,
            metric=METRIC_INNER_PRODUCT,
            chunk_length=settings.chunk_length,
        ),
        token_dtype=token_dtype(tokenizer.vocab_size),
        documents=corpus.documents,
        chunks=corpus.chunks,
        tokens=sum(count.tokens for count in chunked.counts) - recipe.get("erased", {}).get("tokens", 0),
        metadata_columns=settings.fields.metadata,
        sources=sources,
        cleaning={"removed": totals(sources, "removed"), "evaluation": dict(chunked.evaluation)},
        recipe=dict(recipe),
        index=entry,
        shards=shards,
        files=_file_entries(work.snapshot, shared, _within(progress, _RECALL, _FILES)),
        golden=_no_golden(encoder.dimension),
        probes=Probes(PROBE_TEXTS, probes_ND),
    )
    manifest = replace(manifest, golden=_golden(manifest, work, corpus, tokenizer, settings, probes_ND))
    write_bytes_atomically(manifest_path, manifest.to_bytes())
    progress(1.0)
    return manifest


def _within(progress: Callable[[float], None], first: float, end: float) -> Callable[[float], None]:
    """Of a part of the stage, what share of the whole it has reached."""
    return lambda share: progress(first + (end - first) * share)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    with clear_write_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        tokenizer.save(folder)
        for path in folder.iterdir():
            sync(path)


def _index_entry(
    index: Recipe,
    shards: Sequence[ShardEntry],
    folders: Sequence[Path],
    corpus: Corpus,
    dimension: int,
    settings: BuildSettings,
    work: Workspace,
    progress: Callable[[float], None],
) -> IndexEntry:
    if (kept := _kept_entry(index, corpus, settings, work)) is not None:
        return kept
    parts = [
        Part(
            open_index(
                index,
                work.snapshot,
                folder,
                rows=shard.rows,
                dimension=dimension,
                max_norm=shard.max_norm,
                reach=shard.reach,
                search={},
            ),
            shard.first_row,
        )
        for shard, folder in zip(shards, folders, strict=True)
    ]
    measured = measure(index, parts, corpus, dimension, settings, work, progress)
    if corpus.base is None or not shares_quantiser(corpus.base, work.snapshot):
        return measured
    return replace(measured, trained_on=corpus.base.manifest.index.trained_on)


def _kept_entry(index: Recipe, corpus: Corpus, settings: BuildSettings, work: Workspace) -> IndexEntry | None:
    """The base's entry, where few rows came or went since its recall was measured, or nothing exact is left to measure by
    (docs/adr/0004); None: measure it.

    `changed` says how many, over all builds since.
    """
    if corpus.base is None or index.exact:
        return None
    base = corpus.base.manifest
    kept = int(corpus.document_rows[corpus.base_documents >= 0].sum())
    changed = base.index.recall.get("changed", 0) + corpus.chunks + base.chunks - 2 * kept
    few = changed <= _CHANGED * corpus.chunks and base.index.recall["target"] == settings.target_recall
    if corpus.has_vectors and not (few and index.trained and shares_quantiser(corpus.base, work.snapshot)):
        return None
    work.log.write("recall kept", changed=changed, chunks=corpus.chunks)
    return replace(base.index, recall={**base.index.recall, "changed": changed})


def _shard_entry(
    corpus: Corpus,
    first: int,
    end: int,
    dimension: int,
    settings: BuildSettings,
    work: Workspace,
    index: Recipe,
    folder: Path,
    link: int | None,
) -> ShardEntry:
    first_row = int(corpus.first_rows[first])
    rows = int(corpus.document_rows[first:end].sum())
    if corpus.base is not None and link is not None:
        shared = corpus.base.manifest.shards[link]
        max_norm, reach = shared.max_norm, shared.reach
    else:
        blocks = read_vectors(work, corpus, dimension, settings.embed_block, first_row, first_row + rows)
        squares = max(float(np.square(block.astype(np.float64)).sum(axis=1).max()) for block in blocks)
        max_norm, reach = float(np.float32(np.sqrt(squares) * (1 + 1e-6))), 0.0
        if index.trained:
            quantiser = Quantiser(work.snapshot / QUANTISER, dimension=dimension)
            reach = list_reach(folder / LISTS, quantiser, max_norm)
    return ShardEntry(
        first_row=first_row,
        rows=rows,
        first_document=first,
        documents=end - first,
        first_id=corpus.external_id(first),
        last_id=corpus.external_id(end - 1),
        max_norm=max_norm,
        reach=reach,
    )


def _file_entries(
    folder: Path, known: Mapping[str, FileEntry], progress: Callable[[float], None]
) -> dict[str, FileEntry]:
    """Sizes and digests of all files; those `known` from the base are not read again."""
    entries = {}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    total, read = sum(path.stat().st_size for path in paths), 0
    for path in paths:
        progress(read / total)
        read += path.stat().st_size
        name = path.relative_to(folder).as_posix()
        if name in known:
            entries[name] = known[name]
            continue
        digest, blocks = file_digests(path)
        entries[name] = FileEntry(path.stat().st_size, digest, tuple(blocks))
    return entries


def _golden(
    manifest: Manifest,
    work: Workspace,
    corpus: Corpus,
    tokenizer: Tokenizer,
    settings: BuildSettings,
    probes_ND: NDArray[np.float32],
) -> GoldenQueries:
    """Half of the queries are vectors of chunks at even distances, half are probe texts."""
    documents = DocumentTable(work.snapshot / "documents.arrow", documents=manifest.documents)
    shards = [Shard(work.snapshot, manifest, number, documents, tokenizer) for number in range(len(manifest.shards))]
    chunks = min((settings.golden_queries + 1) // 2, corpus.chunks)
    own = [
        shard.vectors(np.asarray([row]))
        for row in np.linspace(0, corpus.chunks - 1, chunks).astype(np.int64).tolist()
        for shard in shards
        if shard.holds(np.asarray(row))
    ]
    queries_ND = np.concatenate([*own, probes_ND[: settings.golden_queries - chunks]])
    hits = merge([shard.search(queries_ND, _GOLDEN_K) for shard in shards], _GOLDEN_K)
    return GoldenQueries(queries_ND, hits.ids_QK, hits.scores_QK)


def _no_golden(dimension: int) -> GoldenQueries:
    return GoldenQueries(
        np.empty((0, dimension), np.float32), np.empty((0, _GOLDEN_K), np.int64), np.empty((0, _GOLDEN_K), np.float32)
    )
