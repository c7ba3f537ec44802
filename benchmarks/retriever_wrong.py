"""What is wrong with a request, and what it must meet."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from retriever_books import DIMENSION, Book

from openbook_core.errors import Reason
from openbook_core.vectors import encode_vectors
from openbook_proto.v1 import admin_pb2 as admin
from openbook_proto.v1 import retriever_pb2 as pb

_NAMES = [
    "",
    ".",
    "..",
    "../exact",
    "exact/../codes",
    "/etc/passwd",
    "a\x00b",
    "exact\n",
    "x" * 129,
    "\u00e9",
    "a b",
    "%2e%2e",
]
_HOLDERS = ["", "..", "../../lease", "a b", "x" * 300, "a/b", "\u00e9"]
_NO_IDS = ["../..", "0" * 63, "0" * 65, "G" * 64, "A" * 64, " " + "0" * 63]
_NOWHERE = "0" * 64
_NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


@dataclass(frozen=True)
class Wrong:
    """`what` is wrong: one of `codes` is due, with this field and reason where they are known."""

    what: str
    field: str | None = None
    codes: tuple[str, ...] = ("INVALID_ARGUMENT",)
    reason: Reason | None = Reason.BAD_ARGUMENT

    def __post_init__(self) -> None:
        if self.codes != ("INVALID_ARGUMENT",) and self.reason is Reason.BAD_ARGUMENT:
            object.__setattr__(self, "reason", None)


def wrong_search(rng: random.Random, book: Book, request: pb.SearchRequest, *, is_router: bool) -> Wrong:
    """Put one thing wrong into a valid search."""
    kinds = [_names, _numbers, _values, _shapes, _types, _lists, _filters, _shards]
    return rng.choice(kinds)(rng, book, request, is_router)


def _names(rng: random.Random, book: Book, request: pb.SearchRequest, is_router: bool) -> Wrong:
    kind = rng.choice(["name", "unknown", "id", "nowhere"])
    if kind == "name":
        request.database = rng.choice(_NAMES)
        return Wrong("database's name", "database")
    if kind == "unknown":
        request.database = "nothing"
        return Wrong("unknown database", codes=("NOT_FOUND",) if is_router else ("FAILED_PRECONDITION",))
    if kind == "id":
        request.snapshot = rng.choice(_NO_IDS)
        return Wrong("snapshot's id", "snapshot")
    request.snapshot = _NOWHERE
    if is_router:
        return Wrong("unknown snapshot", "snapshot", ("NOT_FOUND",), Reason.NOT_FOUND)
    return Wrong("unknown snapshot", "snapshot", ("FAILED_PRECONDITION",), Reason.SNAPSHOT_NOT_LOADED)


def _numbers(rng: random.Random, book: Book, request: pb.SearchRequest, is_router: bool) -> Wrong:
    kind = rng.choice(["k", "rows", "results", "min_score", "min_epoch"])
    if kind == "k":
        request.k = rng.choice([0, 1001, 2**31, 2**32 - 1])
        return Wrong("k", "k")
    if kind == "rows":
        request.queries.rows = rng.choice([0, 16_385, 2**31, 2**32 - 1])
        return Wrong("number of queries", "queries")
    if kind == "results":
        request.queries.rows, request.k = 16_384, 1000
        return Wrong("too many results", "k")
    if kind == "min_score" or not is_router:
        request.min_score = rng.choice(_NOT_FINITE)
        return Wrong("minimum score", "min_score")
    request.min_epoch = rng.choice([10**6, 2**63, 2**64 - 1])
    return Wrong("epoch to come", "min_epoch", ("UNAVAILABLE",), Reason.NOT_READY)


def _values(rng: random.Random, book: Book, request: pb.SearchRequest, is_router: bool) -> Wrong:
    rows = request.queries.rows
    queries_QD = np.ones((rows, DIMENSION), dtype=np.float32)
    at = rng.randrange(rows), rng.randrange(DIMENSION)
    kind = rng.choice(["not finite", "not finite as float16", "scales", "huge"])
    if kind == "huge":
        queries_QD[at] = rng.choice([1e19, 3e38, -3e38])
        request.queries.CopyFrom(encode_vectors(queries_QD))
        return Wrong("too long a vector", "queries")
    queries_QD[at] = rng.choice(_NOT_FINITE)
    if kind == "scales":
        request.queries.CopyFrom(encode_vectors(np.ones_like(queries_QD), 6))
        request.queries.scales = queries_QD[:, at[1]].astype("<f4").tobytes()
    else:
        request.queries.CopyFrom(encode_vectors(queries_QD.astype("f2" if "float16" in kind else "f4")))
    return Wrong(kind, "queries.data")


def _shapes(rng: random.Random, book: Book, request: pb.SearchRequest, is_router: bool) -> Wrong:
    rows = request.queries.rows
    kind = rng.choice(["dimension", "bytes", "declared"])
    if kind == "dimension":
        other = rng.choice([1, DIMENSION - 1, DIMENSION + 1, 1000])
        request.queries.CopyFrom(encode_vectors(np.ones((rows, other), dtype=np.float32)))
        return Wrong("dimension", "queries.dimension")
    if kind == "bytes":
        request.queries.data = request.queries.data[: -rng.randint(1, len(request.queries.data))]
    else:
        request.queries.dimension = rng.choice([0, 2**31, 2**32 - 1])
    return Wrong(kind, "queries.data")


def _types(rng: random.Random, book: Book, request: pb.SearchRequest, is_router: bool) -> Wrong:
    if rng.random() < 0.7:
        request.queries.type = rng.choice([0, 3, 4, 77, 2**31 - 1])  # type: ignore[assignment]
        return Wrong("type", "queries.type")
    request.queries.CopyFrom(encode_vectors(np.ones((request.queries.rows, DIMENSION), dtype=np.float32), 6))
    request.queries.scales = request.queries.scales + b"x"
    return Wrong("number of scales", "queries.scales")


def _lists(rng: random.Random, book: Book, request: pb.SearchRequest, is_router: bool) -> Wrong:
    rows = request.queries.rows
    if rng.random() < 0.5:
        del request.exclusions[:]
        for _ in range(rows + rng.choice([1, 5000])):
            request.exclusions.add()
        return Wrong("number of exclusions", "exclusions")
    del request.filters[:]
    for _ in range(rows + rng.choice([1, 2000])):
        request.filters.add()
    return Wrong("number of filters", "filters")


def _filters(rng: random.Random, book: Book, request: pb.SearchRequest, is_router: bool) -> Wrong:
    del request.filters[:]
    condition = request.filters.add().all_of.add(column="year")
    kind = rng.choice(["column", "no test", "empty value", "kind", "not finite", "mixed bounds", "many", "values"])
    field = "filters[0].all_of[0]"
    if kind == "column":
        condition.column = rng.choice(["", "nothing", "../year"])
        condition.any_of.values.add(number=1)
    elif kind == "empty value":
        condition.any_of.values.add()
    elif kind == "kind":
        condition.any_of.values.add(text="2020")
    elif kind == "not finite":
        condition.range.at_least.number = rng.choice(_NOT_FINITE)
    elif kind == "mixed bounds":
        condition.range.at_least.number, condition.range.below.text = 1, "z"
    elif kind == "many":
        field = "filters[0]"
        for _ in range(64):
            request.filters[0].all_of.add(column="year").any_of.values.add(number=1)
    elif kind == "values":
        condition.any_of.values.extend([pb.FilterValue(number=1)] * 4097)
    return Wrong(f"filter: {kind}", field)


def _shards(rng: random.Random, book: Book, request: pb.SearchRequest, is_router: bool) -> Wrong:
    given = request.shards or [request.shard]
    request.ClearField("shard")
    if is_router:
        if rng.random() < 0.5:
            request.shard = rng.choice([0, 2**32 - 1])
            return Wrong("a shard", "shard")
        del request.shards[:]
        request.shards.extend([0, 1])
        return Wrong("shards", "shards")
    asked = list(given)
    del request.shards[:]
    kind = rng.choice(["none", "unknown", "twice", "both"])
    if kind == "none":
        return Wrong("no shard", "shard")
    if kind == "unknown":
        request.shard = rng.choice([3, 2**32 - 1])
        return Wrong("unknown shard", "shard")
    request.shards.extend(asked * 2 if kind == "twice" else asked)
    if kind == "both":
        request.shard = asked[0]
    return Wrong(f"shards: {kind}", "shards")


def wrong_call(rng: random.Random, book: Book) -> tuple[str, Any, Wrong]:
    """A call of a router with one thing wrong: method, message, and what it must meet."""
    makers: list[Callable[[random.Random, Book], tuple[str, Any, Wrong]]] = [_chunks, _texts, _pins, _terms, _paths]
    return rng.choice(makers)(rng, book)


def _chunks(rng: random.Random, book: Book) -> tuple[str, Any, Wrong]:
    request = pb.GetChunksRequest(database=book.name, snapshot=book.id, ids=bytes(8))
    kind = rng.choice(["ids", "no ids", "bytes", "many", "snapshot", "shard"])
    field = "ids"
    if kind == "ids":
        request.ids = struct.pack("<q", rng.choice([-1, -(2**63), book.chunks, 2**63 - 1]))
    elif kind == "no ids":
        request.ids = b""
    elif kind == "bytes":
        request.ids = bytes(rng.choice([1, 7, 9]))
    elif kind == "many":
        request.ids = bytes(8 * ((1 << 20) + 1))
    elif kind == "snapshot":
        request.snapshot, field = rng.choice(["", *_NO_IDS]), "snapshot"
    else:
        request.shard, field = 0, "shard"
    return "GetChunks", request, Wrong(kind, field)


def _texts(rng: random.Random, book: Book) -> tuple[str, Any, Wrong]:
    request = pb.SearchTextRequest(texts=["a", "b"], search=pb.SearchRequest(database=book.name, k=2))
    kind = rng.choice(["no embedder", "blank", "none", "queries", "k", "name"])
    if kind == "no embedder":
        return "SearchText", request, Wrong(kind, codes=("FAILED_PRECONDITION",), reason=Reason.NOT_READY)
    field = "texts"
    if kind == "blank":
        request.texts.append(rng.choice(["", " \n\t"]))
    elif kind == "none":
        del request.texts[:]
        field = "queries"
    elif kind == "queries":
        request.search.queries.rows, field = 0, "search.queries"
        request.search.queries.SetInParent()
    elif kind == "k":
        request.search.k, field = 0, "k"
    else:
        request.search.database, field = rng.choice(_NAMES), "database"
    return "SearchText", request, Wrong(kind, field)


def _pins(rng: random.Random, book: Book) -> tuple[str, Any, Wrong]:
    if rng.random() < 0.3:
        back = pb.UnpinRequest(database=book.name, snapshot=book.id, holder=rng.choice(_HOLDERS))
        return "Unpin", back, Wrong("holder", "name")
    request = pb.PinRequest(database=book.name, holder="fuzz", ttl_seconds=1)
    kind = rng.choice(["ttl", "holder", "nowhere", "name"])
    if kind == "ttl":
        request.ttl_seconds = rng.choice([0, -1, 1e308, *_NOT_FINITE])
        return "Pin", request, Wrong(kind, "ttl_s")
    if kind == "holder":
        request.holder = rng.choice(_HOLDERS)
        return "Pin", request, Wrong(kind, "name")
    if kind == "nowhere":
        request.snapshot = _NOWHERE
        return "Pin", request, Wrong(kind, "snapshot", ("NOT_FOUND",), Reason.NOT_FOUND)
    request.database = rng.choice(_NAMES)
    return "Pin", request, Wrong(kind, "database")


def _terms(rng: random.Random, book: Book) -> tuple[str, Any, Wrong]:
    """Terms of a swap that are none."""
    request = admin.PrepareRequest(database=book.name, snapshot=book.id)
    name = rng.choice(["deadline_seconds", "canary_percent", "standby_seconds", "watch_seconds", "max_error_share"])
    setattr(request.terms, name, rng.choice([-1.0, 1e300, *_NOT_FINITE]))
    return "Prepare", request, Wrong(name, name.replace("seconds", "s"))


def _paths(rng: random.Random, book: Book) -> tuple[str, Any, Wrong]:
    """Names that lead elsewhere, for all that changes something."""
    method = rng.choice(["Register", "Prepare", "Activate", "Rollback", "Abort", "Plan", "Retire", "Describe"])
    kind: Any = getattr(pb if method == "Describe" else admin, f"{method}Request")
    request = kind(database=rng.choice(_NAMES))
    if method == "Register":
        request.url = str(book.path)
    if hasattr(request, "snapshot"):
        request.snapshot = book.id
    return method, request, Wrong("name", "database")
