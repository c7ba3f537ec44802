"""What a snapshot takes on a GPU, from its files alone: for a plan, before a process loads it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from openbook_database.index.files import LISTS
from openbook_database.index.gpu import flat_bytes, graph_bytes, ivf_bytes
from openbook_database.index.hnsw import GPU_GRAPH_ROWS
from openbook_database.index.lists import Lists
from openbook_database.index.recipe import Recipe, parse_recipe
from openbook_database.manifest import Manifest
from openbook_database.shard import shard_folder


def gpu_bytes_of(snapshot: Path, manifest: Manifest, shards: Collection[int]) -> int:
    """What `Shard.gpu_bytes` says of these shards together; ConfigError where no GPU can hold such an index.

    Of an HNSW also where this process's Faiss builds no graphs: another one may.
    """
    recipe, dimension = parse_recipe(manifest.index.factory), manifest.contract.dimension
    return sum(
        _bytes(recipe, dimension, snapshot / shard_folder(number), manifest.shards[number].rows) for number in shards
    )


def _bytes(recipe: Recipe, dimension: int, folder: Path, rows: int) -> int:
    if recipe.kind == "hnsw" and rows >= GPU_GRAPH_ROWS:
        return graph_bytes(rows, dimension, recipe.links)
    if recipe.kind != "ivf":
        return flat_bytes(rows, dimension)
    lists = Lists(folder / LISTS)
    return ivf_bytes(lists.sizes, lists.code_size, recipe.inner_dimension(dimension), recipe.codec)
