"""A snapshot without some of its documents, from the snapshot alone: no source and no encoder is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from openbook_core.errors import ConfigError, InputError
from openbook_core.fingerprint import Fingerprint
from openbook_core.tokenizer import Tokenizer
from openbook_database.build.add_stage import run_add_stage
from openbook_database.build.base import Base, open_base
from openbook_database.build.chunk_stage import Position, SourceCounts, block_path, write_table
from openbook_database.build.corpus import Corpus
from openbook_database.build.engine import LocalEngine
from openbook_database.build.finish_stage import run_finish_stage
from openbook_database.build.progress import Progress, Stage
from openbook_database.build.settings import BuildSettings
from openbook_database.build.shares import share_shards
from openbook_database.build.train_stage import run_train_stage, training_rows
from openbook_database.build.workspace import Workspace
from openbook_database.documents import DocumentTable
from openbook_database.manifest import Manifest

_BLOCK = 1 << 16


@dataclass(frozen=True)
class EraseResult:
    """The new snapshot. `erased`: documents left out; `missing`: ids that the old one has not; `shared_shards`: those
    without such a document, whose files are the old ones; `reused`: it was there already."""

    path: Path
    snapshot_id: str
    documents: int
    chunks: int
    shards: int
    erased: int
    missing: int
    shared_shards: int
    reused: bool
    notes: tuple[str, ...]


def erase_documents(
    snapshot: str | Path,
    ids: Iterable[str],
    out: str | Path,
    *,
    ignore_missing: bool = False,
    progress: Progress = lambda update: None,
) -> EraseResult:
    """Write the snapshot in the folder `snapshot` without the documents of the external `ids` to the folder `out`.

    The old one stays as it is. Vectors, probes and fingerprints are the old ones; what was trained on the documents
    is not trained again. Killed and run again it goes on; a finished result is left alone. The names of the erased
    documents are in no file that stays. Raises InputError (unknown ids unless `ignore_missing`, nothing or everything
    erased), ConfigError and ConflictError as a build does, NotFoundError and CorruptError for `snapshot`.
    """
    work = Workspace(Path(out), Path(snapshot).absolute())
    base = open_base(work)
    assert base is not None
    erased, missing = _erased(base, ids, ignore_missing)
    kept = np.setdiff1d(np.arange(base.manifest.documents), erased)
    recipe = _recipe(base, erased)
    with work.locked():
        manifest = work.finished(recipe)
        reused = manifest is not None
        if manifest is not None:
            _require_kept(work, manifest, base, kept)
        else:
            names = b"\0".join(base.documents.id_bytes(int(number)) for number in erased)
            work.begin({**recipe, "ids": blake3.blake3(names).hexdigest()}, {})
            work.log.write("erase", out=str(work.out), base=base.id, documents=len(erased))
            manifest = _run_stages(base, kept, recipe, work, progress)
            work.publish()
            work.log.write("finish", snapshot=manifest.snapshot_id)
        work.discard()
    return EraseResult(
        path=work.out,
        snapshot_id=manifest.snapshot_id,
        documents=manifest.documents,
        chunks=manifest.chunks,
        shards=len(manifest.shards),
        erased=len(erased),
        missing=missing,
        shared_shards=len(_shared(base, manifest)),
        reused=reused,
        notes=(
            f"snapshot {base.id[:12]} in {base.path} still holds the erased documents: move its database to the new one, then "
            "delete it and every other copy and snapshot with them",
        ),
    )


def _erased(base: Base, ids: Iterable[str], ignore_missing: bool) -> tuple[NDArray[np.int64], int]:
    """Numbers of the documents `ids`, rising, and how many ids are unknown."""
    wanted = sorted(set(ids))
    found = [base.documents.number(external_id) for external_id in wanted]
    unknown = [external_id for external_id, number in zip(wanted, found, strict=True) if number is None]
    if unknown and not ignore_missing:
        some = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"{len(unknown)} of {len(wanted)} ids name no document of {base.path}: {some}. Correct them, or pass over "
            "unknown ones (--ignore-missing)",
            field="ids",
        )
    numbers = np.asarray(sorted(number for number in found if number is not None), dtype=np.int64)
    if not len(numbers):
        raise InputError(f"none of {len(wanted)} ids names a document of {base.path}: nothing to erase", field="ids")
    if len(numbers) == base.manifest.documents:
        raise InputError(
            f"all {len(numbers)} documents of {base.path} would be erased, a snapshot has at least one: move its database to "
            "another snapshot and delete this one",
            field="ids",
        )
    return numbers, len(unknown)


def _recipe(base: Base, erased: NDArray[np.int64]) -> dict[str, Any]:
    """The base's recipe, with how much was left out since its sources were read: no name, no digest of one."""
    before = base.manifest.recipe.get("erased", {"documents": 0, "chunks": 0, "tokens": 0})
    sizes = [base.size(int(number)) for number in erased]
    now = {
        "documents": before["documents"] + len(erased),
        "chunks": before["chunks"] + sum(rows for rows, _ in sizes),
        "tokens": before["tokens"] + sum(tokens for _, tokens in sizes),
    }
    return {**base.manifest.recipe, **base.record, "erased": now}


def _require_kept(work: Workspace, manifest: Manifest, base: Base, kept: NDArray[np.int64]) -> None:
    """The recipe tells only how many were erased; which they were is told by what is left."""
    left = DocumentTable(work.out / "documents.arrow", documents=manifest.documents).table.column("external_id")
    if left.combine_chunks() != base.documents.table.column("external_id").take(kept).combine_chunks():
        raise ConfigError(
            f"{work.out} holds a snapshot from which other documents were erased: choose another folder", field="out"
        )


def _run_stages(
    base: Base, kept: NDArray[np.int64], recipe: dict[str, Any], work: Workspace, progress: Progress
) -> Manifest:
    settings = BuildSettings.parse(base.manifest.recipe["settings"], source=str(base.path / "manifest.json"))
    tokenizer = Tokenizer.load(base.path / "tokenizer")
    encoder = _Recorded(base.manifest)
    _write_blocks(base, kept, work)
    corpus = Corpus(work, settings.chunk_length)
    ranges, links = share_shards(corpus, base, work.snapshot)
    if corpus.encoded_chunks:
        work.discard()
        raise InputError(
            f"{base.path} keeps no vectors, and its index has them only in part: build without the documents from the "
            "sources (--base), or keep vectors",
            field="snapshot",
        )
    if base.index.trained:
        size = training_rows(base.index, corpus.chunks, encoder.dimension, settings)
        with Stage("train-index", size, progress, work.log) as stage:
            run_train_stage(corpus, base.index, encoder.dimension, settings, work, stage)
    with Stage("add", corpus.chunks, progress, work.log) as stage:
        run_add_stage(corpus, ranges, base.index, encoder.dimension, settings, work, stage, LocalEngine())
    with Stage("finish", corpus.chunks, progress, work.log) as stage:
        evaluation = base.manifest.cleaning["evaluation"]
        chunked = Position(len(base.manifest.sources), 0, tuple(_counts(base, kept)), done=True, evaluation=evaluation)
        manifest = run_finish_stage(
            corpus,
            ranges,
            chunked,
            recipe,
            base.index,
            tokenizer,
            encoder,
            settings,
            work,
            links,
            stage.reach(corpus.chunks),
        )
    return manifest


def _counts(base: Base, kept: NDArray[np.int64]) -> list[SourceCounts]:
    """What was read of each source, as the base has it; of the licences those that a document still has."""
    left = {*base.documents.table.column("licence").take(pa.array(kept)).unique().to_pylist()}
    return [
        SourceCounts(
            **{name: source[name] for name in ("documents", "chunks", "tokens", "skipped", "removed")},
            licences=[licence for licence in source["licences"] if licence in left],
        )
        for source in base.manifest.sources
    ]


def _write_blocks(base: Base, kept: NDArray[np.int64], work: Workspace) -> None:
    """What the chunk stage would make of the documents that are left: all are in the base."""
    rows = pa.schema([("tokens", pa.list_(pa.uint16(), 1)), ("lengths", pa.uint16()), ("headings", pa.large_string())])
    for block, first in enumerate(range(0, len(kept), _BLOCK)):
        numbers = pa.array(kept[first : first + _BLOCK])
        documents = base.documents.table.take(numbers).append_column("base", numbers)
        documents = documents.append_column("held", pa.array(np.zeros(len(numbers), np.int64)))
        write_table(block_path(work.documents, block), documents)
        write_table(block_path(work.chunks, block), rows.empty_table())


class _Recorded:
    """An `encoder.Encoder` that knows the probe texts alone, as the base's manifest has them."""

    def __init__(self, manifest: Manifest) -> None:
        self._probes = manifest.probes
        self.fingerprint: Fingerprint = manifest.contract.embedder
        self.dimension = manifest.contract.dimension
        self.max_tokens = int(manifest.recipe["encoder"]["max_tokens"])
        self.dtype = str(manifest.recipe["encoder"]["dtype"])
        self.arithmetic: Mapping[str, str | int] = {}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        assert tuple(texts) == self._probes.texts
        return self._probes.vectors_ND


def _shared(base: Base, manifest: Manifest) -> set[str]:
    """Shards of the base whose token file is one of the new snapshot."""
    ours, theirs = (
        {entry.blake3: name.split("/")[0] for name, entry in files.items() if name.endswith("/tokens.bin")}
        for files in (manifest.files, base.manifest.files)
    )
    return {theirs[digest] for digest in ours.keys() & theirs.keys()}
