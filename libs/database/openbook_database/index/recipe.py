"""Index recipes: Faiss factory strings that can be built, and the one that is chosen by size and memory."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from openbook_core.errors import ArgumentError

AUTO = "auto"
FLAT = "Flat"
_CODEWORDS = 256  # of a product quantiser: 8 bits each
_FLAT_BYTES = 256 << 20
_SQ8_BYTES = 16 << 30
_GRAPH_LISTS = 1 << 16
_MOST_LISTS = 1 << 22
_SAMPLE_PER_LIST, _SAMPLE_LEAST = 64, 1 << 16

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

    def sample_size(self, rows: int, given: int | None) -> int:
        """Rows of a random sample for training, of `rows`."""
        if not self.trained:
            return 0
        wanted = max(_SAMPLE_PER_LIST * self.lists, _SAMPLE_LEAST) if given is None else given
        return min(rows, max(wanted, self.least_rows))

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


def choose_recipe(chunks: int, dimension: int) -> Recipe:
    """Exact while the vectors take up to 256 MiB, one byte for each element up to 16 GiB, product codes above."""
    if 4 * dimension * chunks <= _FLAT_BYTES:
        return parse_recipe(FLAT)
    if dimension * chunks <= _SQ8_BYTES:
        return parse_recipe(f"IVF{_power_of_two(2 * math.sqrt(chunks))},SQ8")
    lists = min(_MOST_LISTS, _power_of_two(max(2 * math.sqrt(chunks), chunks / 1024)))
    graph = "_HNSW32" if lists >= _GRAPH_LISTS else ""
    rotated = min(128, dimension)
    codes = max(part for part in range(1, 65) if rotated % part == 0)
    return parse_recipe(f"OPQ{codes}_{rotated},IVF{lists}{graph},PQ{codes}")


def resolve_recipe(factory: str, chunks: int, dimension: int) -> Recipe:
    """The recipe of a corpus; ArgumentError naming the setting where it does not fit."""
    recipe = choose_recipe(chunks, dimension) if factory == AUTO else parse_recipe(factory)
    recipe.require_dimension(dimension)
    recipe.require_rows(chunks)
    return recipe


def _power_of_two(value: float) -> int:
    return 1 << max(0, round(math.log2(value)))
