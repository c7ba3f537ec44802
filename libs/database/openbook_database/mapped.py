"""What a process maps of snapshots: files that two of them share on disk are one in memory, too."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from openbook_core.errors import CorruptError
from openbook_database.manifest import Manifest

Files = Mapping[tuple[int, int], int]
"""Bytes by device and inode."""


def files_of(folder: Path, manifest: Manifest, shards: Collection[int]) -> Files:
    """The files that a process maps which serves these `shards`; CorruptError where one is missing."""
    found: dict[tuple[int, int], int] = {}
    for name in manifest.mapped_files(shards):
        try:
            status = os.stat(folder / name)
        except OSError as error:
            raise CorruptError(f"{folder / name}: is missing or cannot be read ({error.strerror})") from error
        found[status.st_dev, status.st_ino] = status.st_size
    return found


def total(snapshots: Iterable[Files]) -> int:
    """Bytes of all of them together, each file counted once."""
    return sum({key: size for files in snapshots for key, size in files.items()}.values())


def shards_of(member_index: int, member_count: int, shards: int) -> tuple[int, ...]:
    """The shards, of so many, that one of several members serves."""
    return tuple(number for number in range(shards) if number % member_count == member_index)
