"""What an answer's key in the router's cache follows from, and what it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openbook_core.clients import where
from openbook_core.clients.retriever import search_request
from openbook_core.errors import ConfigError
from openbook_core.vectors import encode_vectors
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.result_cache import _keys

QUERIES = np.random.default_rng(3).standard_normal((3, 8)).astype(np.float32)
SNAPSHOT = "a" * 64


def keys(snapshot: str = SNAPSHOT, rows: list[int] | None = None, **options: Any) -> list[bytes]:
    queries = QUERIES[rows or [0, 1, 2]]
    return list(_keys(search_request("book", options.pop("k", 2), queries=queries, **options), snapshot))


def test_what_changes_an_answer_changes_its_key() -> None:
    request = search_request("book", 2, queries=QUERIES)
    halves, ints = pb.SearchRequest(), pb.SearchRequest()
    halves.CopyFrom(request)
    halves.queries.CopyFrom(encode_vectors(QUERIES.astype("f2")))
    ints.CopyFrom(request)
    ints.queries.CopyFrom(encode_vectors(QUERIES, 6))
    scaled = pb.SearchRequest()
    scaled.CopyFrom(ints)
    scaled.queries.scales = (np.frombuffer(ints.queries.scales, "<f4") * 2).tobytes()
    given = [
        keys(),
        keys("b" * 64),
        keys(k=3),
        keys(min_score=0.0),
        keys(min_score=0.5),
        *([*_keys(each, SNAPSHOT)] for each in (halves, ints, scaled)),
        keys(exclude=[["a"]] * 3),
        keys(exclude=[["a", "b"]] * 3),
        keys(exclude=[["ab"]] * 3),
        keys(exclude=[["a"]] * 3, filters=[where(language="de")]),
        keys(filters=[where(language="de")]),
        keys(filters=[where(language=("de", "en"))]),
        keys(filters=[where(language="d")]),
    ]
    flat = [key for some in given for key in some]
    assert len(set(flat)) == len(flat) == 3 * len(given)


def test_what_changes_no_answer_changes_no_key() -> None:
    plain = keys()
    assert keys(rows=[2, 0]) == [plain[2], plain[0]]
    assert keys(text=True, tokens=True, documents=True, allow_partial=True, min_epoch=7) == plain
    assert keys(exclude=[[], [], []]) == keys(filters=[pb.Filter()]) == plain
    several = keys(exclude=[["b", "a", "b"], [], ["c"]])
    assert several == [*keys(rows=[0], exclude=[["a", "b"]]), plain[1], *keys(rows=[2], exclude=[["c"]])]
    one = where(language="de")
    assert keys(filters=[one]) == keys(filters=[one] * 3)
    assert keys(filters=[one, pb.Filter(), one])[1] == plain[1]


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"role": "shard"}, "is the router's"), ({"role": "router", "snapshot_guard": False}, "snapshot_guard")],
)
def test_a_cache_belongs_to_a_router_that_guards_snapshots(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        RetrieverConfig.parse({"registry": "r", "cache": "redis://h", **settings}, source="test")
