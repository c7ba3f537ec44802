"""How the shards of a new snapshot follow those of its base, so that the files of unchanged ones are shared."""

from __future__ import annotations

import os
import shutil
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from openbook_database.build.base import Base
from openbook_database.build.corpus import Corpus
from openbook_database.files import clear_write_errors, write_atomically
from openbook_database.index.files import QUANTISER
from openbook_database.manifest import FileEntry, Manifest
from openbook_database.shard import shard_folder

Ranges = Sequence[tuple[int, int]]
Links = Mapping[int, int]
_SKEWED = 2.0
_OUTGROWN = 2.0


def share_shards(corpus: Corpus, base: Base, snapshot: Path) -> tuple[Ranges, Links]:
    """Document ranges by the base's split keys, and for each shard that is as it was, its number in the base; the files of
    those, and the quantiser, get a second name in the folder `snapshot`.

    A shard takes the ids from its first one in the base up to the next shard's; one that has become empty is left out.
    Only documents that are encoded again are left to the embed stage; the files that rows are taken from are checked.
    """
    keys = [shard.first_id.encode() for shard in base.manifest.shards[1:]]
    numbers = range(corpus.documents)
    ends = [bisect_left(numbers, key, key=lambda number: corpus.external_id(number).encode()) for key in keys]
    ranges: list[tuple[int, int]] = []
    links: dict[int, int] = {}
    first = 0
    for number, (shard, end) in enumerate(zip(base.manifest.shards, [*ends, corpus.documents], strict=True)):
        same = np.arange(shard.first_document, shard.end_document)
        if end > first:
            if np.array_equal(corpus.base_documents[first:end], same):
                links[len(ranges)] = number
            ranges.append((first, end))
        first = end
    if base.index.trained:
        gone = np.ones(base.manifest.documents, dtype=np.bool_)
        gone[corpus.base_documents[corpus.base_documents >= 0]] = False
        if base.quantiser_keeps(np.flatnonzero(gone)):
            links = {}  # it is trained again, and all shards are written by it
        else:
            link_file(base.path / QUANTISER, snapshot / QUANTISER)
    linked = np.zeros(corpus.documents, dtype=np.bool_)
    for number in links:
        linked[slice(*ranges[number])] = True
    corpus.encode(~linked & ((corpus.base_documents < 0) | (not base.has_vectors)))
    taken = corpus.base_documents[~linked & (corpus.base_documents >= 0)]
    if base.has_vectors:
        for shard_number, shard in enumerate(base.manifest.shards):
            if ((taken >= shard.first_document) & (taken < shard.end_document)).any():
                base.check_shard(shard_number)
    _link_shards(base, links, snapshot)
    return ranges, links


def _link_shards(base: Base, links: Links, snapshot: Path) -> None:
    for number, shared in links.items():
        for name in shard_files(base, shared):
            link_file(base.path / name, snapshot / shard_folder(number) / Path(name).name)


def shard_files(base: Base, number: int) -> dict[str, FileEntry]:
    """The files of one shard of the base."""
    prefix = shard_folder(number) + "/"
    return {name: entry for name, entry in base.manifest.files.items() if name.startswith(prefix)}


def shares_quantiser(base: Base, snapshot: Path) -> bool:
    """Whether the snapshot in the folder `snapshot` has the base's quantiser."""
    ours = snapshot / QUANTISER
    return ours.exists() and ours.read_bytes() == (base.path / QUANTISER).read_bytes()


def shared_entries(base: Base | None, links: Links) -> dict[str, FileEntry]:
    """Sizes and digests of the files of shared shards, by their names in the new snapshot."""
    found = {}
    for number, shared in links.items():
        assert base is not None
        for name, entry in shard_files(base, shared).items():
            found[f"{shard_folder(number)}/{Path(name).name}"] = entry
    return found


def link_file(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system allows none (another one, a file of somebody else); a file that is there
    is whole."""
    if target.exists():
        return
    with clear_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Straight to its name: a link appears at once, and a temporary name could be opened for writing.
        os.link(source, target)
    except OSError:
        write_atomically(target, lambda temporary: _copy(source, temporary))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def skewed(rows: Sequence[int]) -> str | None:
    """What to say of shards of which the largest has more than twice as many rows as the others on average."""
    others = (sum(rows) - max(rows)) / max(1, len(rows) - 1)
    if len(rows) < 2 or max(rows) <= _SKEWED * others:
        return None
    return (
        f"shard {rows.index(max(rows))} holds {max(rows)} chunks, the others {others:.0f} on average, since shards keep the "
        "base's borders: a build without a base divides them anew"
    )


def outgrown(manifest: Manifest) -> str | None:
    """What to say where the corpus has more than doubled since the quantiser was trained."""
    then = manifest.recipe.get("trained_chunks")
    if then is None or manifest.chunks <= _OUTGROWN * then:
        return None
    return (
        f"the index was trained when there were {then} chunks, now there are {manifest.chunks}: a build without a base trains "
        "it anew"
    )
