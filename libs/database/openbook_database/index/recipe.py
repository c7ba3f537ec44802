"""Index recipes: Faiss factory strings that can be built, and the one that is chosen by size and memory."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from openbook_core.errors import ArgumentError

AUTO = "auto"
FLAT = "Flat"
DEFAULT_MEMORY = 16 << 30
_CODEWORDS = 256  # of a product quantiser: 8 bits each
_FLAT_BYTES = 256 << 20
_GRAPH_LISTS = 1 << 16
_MOST_LISTS = 1 << 22
_SAMPLE_PER_LIST, _SAMPLE_LEAST = 64, 1 << 16
_SAMPLE_PER_LIST_LEAST = 8
LIST_ITERATIONS, OPQ_ITERATIONS, PQ_ITERATIONS = 10, 50, 25  # Faiss' own
_CODE_ROWS = 1 << 16  # of a sample, for rotation and codes

_GRAMMAR = re.compile(
    r"(?:OPQ(?P<opq>\d+)(?:_(?P<rotated>\d+))?,)?"
    r"IVF(?P<lists>\d+)(?:_HNSW(?P<coarse_links>\d+))?,"
    r"(?:(?P<codec>Flat|SQ8|RaBitQ)|PQ(?P<codes>\d+)(?:x8)?)"
)
_KNOWN = "Flat, HNSW32, IVF1024,Flat, IVF1024,SQ8, IVF1024,RaBitQ, OPQ64_128,IVF65536_HNSW32,PQ64 and the like, or auto"


@dataclass(frozen=True)
class Recipe:
    """A factory string in parts. `opq`: parts that OPQ rotates for, to `rotated` dimensions; `lists`: inverted lists;
    `links`: of the HNSW graph over the rows, `coarse_links`: over the lists; `codes`: bytes of a PQ code."""

    factory: str
    kind: Literal["flat", "hnsw", "ivf"]
    codec: Literal["Flat", "SQ8", "RaBitQ", "PQ"] = "Flat"
    lists: int = 0
    links: int = 0
    coarse_links: int = 0
    opq: int = 0
    rotated: int = 0
    codes: int = 0

    @property
    def exact(self) -> bool:
        """Whether search finds the nearest rows by definition."""
        return self.kind == "flat"

    @property
    def trained(self) -> bool:
        """Whether a quantiser has to be trained, which all shards share."""
        return self.kind == "ivf"

    @property
    def least_rows(self) -> int:
        """Rows that training needs."""
        return max(self.lists, _CODEWORDS if self.codes or self.opq else 0)

    def inner_dimension(self, dimension: int) -> int:
        """Elements of a vector after the rotation."""
        return self.rotated or dimension

    def require_dimension(self, dimension: int) -> None:
        """ArgumentError where vectors of `dimension` elements cannot be indexed so."""
        inner = self.inner_dimension(dimension)
        if inner > dimension:
            raise self._error(f"OPQ makes {inner} dimensions of {dimension}: give at most {dimension}")
        for name, parts in (("OPQ", self.opq), ("PQ", self.codes)):
            if parts and inner % parts:
                fitting = max(part for part in range(1, parts + 1) if inner % part == 0)
                raise self._error(
                    f"{name}{parts} cuts vectors of {inner} elements into {parts} parts of equal length, which does not go: "
                    f"give a divisor of {inner}, for example {name}{fitting}"
                )

    def require_rows(self, rows: int) -> None:
        """ArgumentError where `rows` chunks are too few to train on."""
        if rows < self.lists:
            raise self._error(
                f"{self.lists} lists need at least as many chunks, there are {rows}: give at most IVF{rows}, or auto"
            )
        if rows < self.least_rows:
            raise self._error(
                f"a product quantiser is trained on at least {_CODEWORDS} chunks, there are {rows}: give SQ8 instead, or auto"
            )

    def bytes_per_row(self, dimension: int) -> int:
        """Bytes that the index takes for each chunk, list heads, graph levels and the quantiser left out."""
        inner = self.inner_dimension(dimension)
        if self.kind != "ivf":
            return 4 * dimension + 8 * self.links
        code = {"Flat": 4 * inner, "SQ8": inner, "RaBitQ": -(-inner // 8) + 8, "PQ": self.codes}[self.codec]
        return code + 16  # its row, and its place by row

    def sample_row_bytes(self, dimension: int) -> int:
        """Memory that training takes for a row of its sample: the vector, and beside it the rotated one."""
        return 4 * (dimension + (self.inner_dimension(dimension) if self.opq else 0))

    def sample_size(self, rows: int, given: int | None, dimension: int, memory: int = DEFAULT_MEMORY) -> int:
        """Rows of a random sample for training, of `rows`: the number that is `given`, else 64 for each list as far as `memory`
        bytes hold them."""
        if not self.trained:
            return 0
        wanted = given or max(_SAMPLE_PER_LIST * self.lists, _SAMPLE_LEAST)
        if given is None:
            wanted = min(wanted, memory // self.sample_row_bytes(dimension))
        return min(rows, max(wanted, self.least_rows))

    def training_work(self, dimension: int, rows: int) -> tuple[float, float, float]:
        """Operations to train on a sample of `rows`: the rotation, one of the 10 iterations for the lists, the codes."""
        inner, few = self.inner_dimension(dimension), min(rows, _CODE_ROWS)
        rotation = 2.0 * OPQ_ITERATIONS * few * inner * (2 * dimension + _CODEWORDS) if self.opq else 0.0
        codes = 2.0 * PQ_ITERATIONS * few * inner * _CODEWORDS if self.codes else 2.0 * few * inner
        return rotation, 2.0 * inner * self.lists * rows, codes

    def require_memory(self, dimension: int, memory: int) -> None:
        """ArgumentError naming `memory` where it does not hold the least sample."""
        needed = self.least_rows * self.sample_row_bytes(dimension) if self.trained else 0
        if needed > memory:
            raise ArgumentError(
                f"memory: {memory / 1e9:.3g} GB do not hold the {self.least_rows:,} vectors that {self.factory} is trained on at "
                f"least: give {needed / 1e9:.3g} GB, or fewer lists",
                field="memory",
            )

    def _error(self, reason: str) -> ArgumentError:
        return ArgumentError(f"index recipe {self.factory!r}: {reason}", field="index")


def parse_recipe(factory: str) -> Recipe:
    """The recipe; ArgumentError where it is not known."""
    if factory == FLAT:
        return Recipe(factory, "flat")
    graph = re.fullmatch(r"HNSW(\d+)(?:,Flat)?", factory)
    if graph and 2 <= int(graph[1]) <= 256:
        return Recipe(factory, "hnsw", links=int(graph[1]))
    found = _GRAMMAR.fullmatch(factory)
    if not found:
        raise ArgumentError(f"index recipe {factory!r} is not known; known: {_KNOWN}", field="index")
    numbers = {name: int(found[name] or 0) for name in ("lists", "coarse_links", "opq", "rotated", "codes")}
    for name, value in numbers.items():
        if found[name] and value < 1:
            raise ArgumentError(f"index recipe {factory!r}: numbers must be at least 1", field="index")
    return Recipe(factory, "ivf", codec=found["codec"] or "PQ", **numbers)  # type: ignore[arg-type]


def check_recipe(factory: str) -> str:
    """`factory` where it is "auto" or known; else ArgumentError."""
    if factory != AUTO:
        parse_recipe(factory)
    return factory


def choose_recipe(chunks: int, dimension: int, memory: int = DEFAULT_MEMORY, shards: int = 1) -> Recipe:
    """What "auto" is for `shards` machines of `memory` bytes: exact while the vectors take up to 256 MiB, one byte for each
    element while a shard's index fits into the memory, product codes above.

    As many lists as the corpus wants, at most one for 8 vectors of the sample that the memory holds.
    """
    if 4 * dimension * chunks <= _FLAT_BYTES:
        return parse_recipe(FLAT)
    lists = _power_of_two(max(2 * math.sqrt(chunks), chunks / 1024))
    if parse_recipe(f"IVF{lists},SQ8").bytes_per_row(dimension) * chunks <= memory * shards:
        return parse_recipe(_ivf(min(lists, _lists_in(memory, 4 * dimension)), "SQ8"))
    rotated = min(128, dimension)
    codes = max(part for part in range(1, 65) if rotated % part == 0)
    lists = min(lists, _lists_in(memory, 4 * (dimension + rotated)))
    return parse_recipe(f"OPQ{codes}_{rotated},{_ivf(lists, f'PQ{codes}')}")


def _ivf(lists: int, codec: str) -> str:
    return f"IVF{lists}{'_HNSW32' if lists >= _GRAPH_LISTS else ''},{codec}"


def _lists_in(memory: int, row_bytes: int) -> int:
    """The most lists, a power of two, that a sample in so much memory can train."""
    return min(_MOST_LISTS, 1 << max(0, int(math.log2(max(1, memory // row_bytes // _SAMPLE_PER_LIST_LEAST)))))


def resolve_recipe(factory: str, chunks: int, dimension: int, memory: int = DEFAULT_MEMORY, shards: int = 1) -> Recipe:
    """The recipe of a corpus; ArgumentError naming the setting where it does not fit."""
    recipe = choose_recipe(chunks, dimension, memory, shards) if factory == AUTO else parse_recipe(factory)
    recipe.require_dimension(dimension)
    recipe.require_rows(chunks)
    recipe.require_memory(dimension, memory)
    return recipe


def _power_of_two(value: float) -> int:
    return 1 << max(0, round(math.log2(value)))
