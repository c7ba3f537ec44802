"""The files of a shard's index by recipe: written, and opened again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openbook_database.index.base import IndexReader
from openbook_database.index.flat import FlatReader, write_flat
from openbook_database.index.hnsw import DEFAULT_EF, HNSWReader, write_hnsw
from openbook_database.index.ivf import IVFReader, write_ivf
from openbook_database.index.lists import Lists, write_places
from openbook_database.index.recipe import Recipe

QUANTISER = "quantiser.faiss"
LIST_SIZES = "list_sizes.bin"
LISTS, PLACES = "lists.faiss", "places.bin"
_ADD_BLOCK = 1 << 12


def index_writers(
    recipe: Recipe,
    snapshot: Path,
    folder: Path,
    rows: int,
    dimension: int,
    vectors: Callable[[], Iterable[NDArray[np.float32]]],
    *,
    gpu: bool = False,
) -> dict[str, Callable[[Path], None]]:
    """What writes each file of the index of a shard in `folder`, in this order; `vectors` gives its `rows` in blocks."""
    if not recipe.trained:
        return {LISTS: lambda path: write_index(path, recipe, rows, dimension, vectors())}
    return {
        LISTS: lambda path: write_index(path, recipe, rows, dimension, vectors(), snapshot / QUANTISER, gpu=gpu),
        PLACES: lambda path: write_places(path, folder / LISTS),
    }


def write_index(
    path: Path,
    recipe: Recipe,
    rows: int,
    dimension: int,
    blocks: Iterable[NDArray[np.float32]],
    quantiser: Path | None = None,
    *,
    gpu: bool = False,
) -> None:
    """Write the index of a shard over its `rows` float32 vectors, blocks [n, d] row after row; OSError where it cannot.

    The bytes follow from the rows and the quantiser, not from the blocks.
    """
    if recipe.kind == "flat":
        write_flat(path, dimension, blocks)
        return
    regular = regular_blocks(blocks, _ADD_BLOCK)
    if recipe.kind == "hnsw":
        write_hnsw(path, dimension, recipe.links, regular)
    else:
        assert quantiser is not None
        write_ivf(path, quantiser, rows, dimension, regular, gpu=gpu)


def write_list_sizes(path: Path, shards: Iterable[Path]) -> None:
    """Write the number of rows of each list over the shards in the folders `shards`."""
    path.write_bytes(np.sum([Lists(folder / LISTS).sizes for folder in shards], axis=0).astype("<i8").tobytes())


def open_index(
    recipe: Recipe,
    snapshot: Path,
    folder: Path,
    *,
    rows: int,
    dimension: int,
    max_norm: float,
    reach: float,
    search: Mapping[str, int],
) -> IndexReader:
    """The index of the shard in `folder`, mapped; CorruptError where it is not what the manifest describes."""
    if recipe.kind == "flat":
        return FlatReader.open(folder / LISTS, rows=rows, dimension=dimension, max_norm=max_norm)
    if recipe.kind == "hnsw":
        effort = search.get("efSearch", DEFAULT_EF)
        return HNSWReader.open(folder / LISTS, rows=rows, dimension=dimension, max_norm=max_norm, effort=effort)
    return IVFReader.open(
        folder,
        snapshot,
        rows=rows,
        dimension=dimension,
        max_norm=max_norm,
        reach=reach,
        nprobe=search.get("nprobe", 1),
    )


def regular_blocks(blocks: Iterable[NDArray[np.float32]], rows: int) -> Iterator[NDArray[np.float32]]:
    """The same rows in blocks of `rows`, the last one shorter, contiguous."""
    held: list[NDArray[np.float32]] = []
    count = 0
    for block_ND in blocks:
        while len(block_ND):
            part_ND = block_ND[: rows - count]
            held.append(part_ND)
            count += len(part_ND)
            block_ND = block_ND[len(part_ND) :]
            if count == rows:
                yield held[0] if len(held) == 1 else np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)
