"""Exclusion and filters, through the shards' engines: equal to brute force over the documents that are left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openbook_core.clients import where
from openbook_core.clients.retriever import SearchResult, search_request
from openbook_core.errors import ArgumentError
from openbook_database.filters import Column, Condition, Filters, Range
from openbook_database.snapshot import Snapshot
from openbook_database.testing import build_tiny_snapshot, tiny_rows
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever import filters as filters_module
from openbook_retriever.holdings import Holdings
from openbook_retriever.merging import merge_replies
from openbook_retriever.shard_engine import ShardEngine

SHARDS = (1, 2, 3, 7)
COLUMNS = ("language", "date", "weight", "open", "empty")
LANGUAGES = ("de", "en", "zh", "Δ")


def make_rows() -> list[dict[str, Any]]:
    """Documents of which every third text comes twice, with metadata that some lack and values of several kinds."""
    rows = tiny_rows(36, seed=5, words=60)
    random = np.random.default_rng(6)
    for number, row in enumerate(rows):
        if number % 3 == 2:
            row["text"], row["title"] = rows[number - 1]["text"], rows[number - 1]["title"]
        if number % 5:
            row["language"] = LANGUAGES[random.integers(len(LANGUAGES))]
        row["date"] = f"202{random.integers(4)}-0{random.integers(1, 10)}-01"
        row["weight"] = [1, 1.0, 2.5, -3, "1", ["1"], True][random.integers(7)]
        row["open"] = bool(random.integers(2))
    return rows


ROWS = make_rows()


class Served:
    """One snapshot with its shards, and its vectors and documents row by row, read without search."""

    def __init__(self, root: Path, shards: int) -> None:
        built = build_tiny_snapshot(
            root / str(shards),
            rows=ROWS,
            shards=shards,
            index="Flat",
            fields={"metadata": COLUMNS},
        )
        self.snapshot = Snapshot.open(built.path)
        assert len(self.snapshot.shards) == shards
        holdings = Holdings()
        holdings.begin("tiny", built.snapshot_id, tuple(range(shards)))
        holdings.loaded("tiny", self.snapshot)
        self.engine = ShardEngine(holdings)
        ids_of = [np.arange(shard.entry.first_row, shard.entry.end_row) for shard in self.snapshot.shards]
        parts = list(zip(self.snapshot.shards, ids_of, strict=True))
        self.vectors_ND = np.concatenate([shard.vectors(ids) for shard, ids in parts])
        self.document_N = np.concatenate([shard.document_numbers(ids) for shard, ids in parts])
        self.names = [self.snapshot.documents.record(n).external_id for n in range(self.snapshot.manifest.documents)]

    def search(self, queries_QD: NDArray[np.float32], k: int, **options: Any) -> SearchResult:
        replies = []
        for shard in self.snapshot.shards:
            request = search_request(
                "tiny", k, queries=queries_QD, snapshot=self.snapshot.id, shard=shard.number, tokens=True, documents=True,
                **options,
            )  # fmt: skip
            replies.append(self.engine.search(request))
        merged = merge_replies(replies, len(queries_QD), k, pb.Fields(tokens=True, document=True))
        return SearchResult.from_proto(merged, tokens_asked=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Served]:
    root = tmp_path_factory.mktemp("filters")
    return {shards: Served(root, shards) for shards in SHARDS}


def oracle(
    served: Served, query_D: NDArray[np.float32], k: int, keep: Callable[[str], bool], min_score: float | None
) -> list[int]:
    """Chunk ids by brute force: filter, then sort by score and id."""
    scores = np.asarray([np.float32(np.sum(query_D.astype(np.longdouble) * v)) for v in served.vectors_ND])
    kept = [
        (-score, row)
        for row, score in enumerate(scores.tolist())
        if keep(served.names[served.document_N[row]]) and (min_score is None or score >= np.float32(min_score))
    ]
    return [row for _, row in sorted(kept)[:k]]


BY_ID = {row["id"]: row for row in ROWS}


def same_kind(value: Any, other: Any) -> bool:
    numbers = (int, float)
    if isinstance(value, bool) or isinstance(other, bool):
        return isinstance(value, bool) and isinstance(other, bool)
    return (isinstance(value, numbers) and isinstance(other, numbers)) or (
        isinstance(value, str) and isinstance(other, str)
    )


def meets(row: dict[str, Any], columns: dict[str, Any]) -> bool:
    """What `where` promises, in plain Python."""
    tests: dict[str, Callable[[Any, Any], bool]] = {
        "at_least": lambda value, bound: value >= bound,
        "above": lambda value, bound: value > bound,
        "at_most": lambda value, bound: value <= bound,
        "below": lambda value, bound: value < bound,
    }
    for column, wanted in columns.items():
        value = row.get(column)
        if not isinstance(wanted, dict):
            several = wanted if isinstance(wanted, list) else [wanted]
            met = any(same_kind(value, each) and value == each for each in several)
        elif "not_in" in wanted:
            met = not any(same_kind(value, each) and value == each for each in wanted["not_in"])
        else:
            met = all(same_kind(value, bound) and tests[name](value, bound) for name, bound in wanted.items())
        if not met:
            return False
    return True


DATES = st.sampled_from([f"202{year}-0{month}-01" for year in range(5) for month in (1, 5, 9)])
WEIGHTS = st.sampled_from([1, 2.5, -3.0, "1", True, 7])
NUMBERS = st.sampled_from([-3, 0, 1, 2.5, 9])
BOUNDS = st.sampled_from(["at_least", "above", "at_most", "below"])
CONDITIONS: dict[str, st.SearchStrategy[Any]] = {
    "language": st.sampled_from(LANGUAGES)
    | st.lists(st.sampled_from((*LANGUAGES, "xx")), min_size=1, max_size=3)
    | st.lists(st.sampled_from(LANGUAGES), min_size=1, max_size=3).map(lambda values: {"not_in": values}),
    "date": st.dictionaries(BOUNDS, DATES, min_size=1),
    "weight": WEIGHTS | st.dictionaries(BOUNDS, NUMBERS, min_size=1) | st.lists(WEIGHTS, min_size=1, max_size=3),
    "open": st.booleans(),
}
FILTERS = st.fixed_dictionaries({}, optional=CONDITIONS)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), shards=st.sampled_from(SHARDS), k=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_filter_then_top_k_of_brute_force(
    served: dict[int, Served], data: st.DataObject, shards: int, k: int, seed: int
) -> None:
    here = served[shards]
    random = np.random.default_rng(seed)
    queries_QD = random.normal(size=(3, 16)).astype(np.float32)
    queries_QD[0] = here.vectors_ND[random.integers(len(here.vectors_ND))]
    columns = data.draw(st.lists(FILTERS, min_size=3, max_size=3) | st.lists(FILTERS, max_size=1), label="filters")
    names = st.sampled_from([*BY_ID, "no such document"])
    exclude = data.draw(st.lists(st.lists(names, max_size=30), min_size=3, max_size=3) | st.none(), label="exclude")
    min_score = data.draw(st.none() | st.sampled_from([-0.5, 0.0, 0.25, 0.5]), label="min_score")
    result = here.search(
        queries_QD, k, filters=[where(**each) for each in columns], exclude=exclude, min_score=min_score
    )
    for query, query_D in enumerate(queries_QD):
        wanted = columns[query if len(columns) > 1 else 0] if columns else {}
        out = set(exclude[query]) if exclude else set()

        def keep(name: str, out: set[str] = out, wanted: dict[str, Any] = wanted) -> bool:
            return name not in out and meets(BY_ID[name], wanted)

        found = result.ids[query][result.ids[query] >= 0].tolist()
        assert found == oracle(here, query_D, k, keep, min_score)
        rows = result.row_of[query][result.row_of[query] >= 0]
        assert all(keep(result.chunks.documents[row].external_id) for row in rows)
    assert result.unknown_exclusions == int(exclude is not None and any("no such document" in ids for ids in exclude))


def test_metadata_comes_back_with_neighbours(served: dict[int, Served]) -> None:
    queries_QD = np.random.default_rng(3).normal(size=(6, 16)).astype(np.float32)
    for one in served.values():
        found = one.search(queries_QD, 8)
        assert found.chunks is not None
        seen = set()
        for chunk, row in zip(found.ids.ravel().tolist(), found.row_of.ravel().tolist(), strict=True):
            document = found.chunks.documents[row]
            wanted = BY_ID[one.names[one.document_N[chunk]]]
            assert (document.external_id, document.title) == (wanted["id"], wanted["title"])
            assert json.loads(document.metadata_json) == {name: wanted[name] for name in COLUMNS if name in wanted}
            seen.add(document.external_id)
        assert len(seen) > 5


def test_a_continuation_is_never_of_an_excluded_document(served: dict[int, Served]) -> None:
    """The continuation is the next chunk of the hit's own document, or none: checked token by token."""
    for here in served.values():
        queries_QD = here.vectors_ND[::7]
        exclude = [[here.names[here.document_N[row]]] for row in range(0, len(here.vectors_ND), 7)]
        result = here.search(queries_QD, 5, exclude=exclude)
        assert result.chunks.tokens is not None
        assert result.chunks.lengths is not None
        excluded = {name for (name,) in exclude}
        assert excluded
        for query, (name,) in enumerate(exclude):
            for chunk, row in zip(result.ids[query].tolist(), result.row_of[query].tolist(), strict=True):
                document = result.chunks.documents[row]
                assert document.external_id != name
                following = chunk + 1
                goes_on = following < len(here.document_N) and here.document_N[following] == document.number
                used = int(result.chunks.lengths[row, 1])
                assert (used > 0) == goes_on
                if goes_on:
                    shard = here.snapshot.shard_of(following)
                    tokens, lengths = shard.tokens(np.asarray([following]))
                    assert used == lengths[0, 0]
                    np.testing.assert_array_equal(result.chunks.tokens[row, 16 : 16 + used], tokens[0, :used])


@pytest.mark.parametrize(
    ("filters", "field", "words"),
    [
        ([where(tenant="a")], "filters[0].all_of[0]", "no metadata column 'tenant'; it has: "),
        ([where(), where(date=3), where()], "filters[1].all_of[0]", "holds text, given number 3"),
        ([where(open="yes")], "filters[0].all_of[0]", "holds flag, given text 'yes'"),
        ([where(date="x"), where()], "filters", "given 2"),
        ([pb.Filter(all_of=[pb.FilterCondition(column="date")])], "filters[0].all_of[0]", "needs values"),
        ([where(date={"at_least": "a", "below": 3})], "filters[0].all_of[0]", "texts alone or numbers alone"),
        ([where(open={"at_least": True})], "filters[0].all_of[0]", "texts alone or numbers alone"),
        ([where(language=[])], "filters[0].all_of[0]", "needs values"),
        (
            [
                pb.Filter(
                    all_of=[
                        pb.FilterCondition(
                            column="weight",
                            range=pb.FilterRange(above=pb.FilterValue(number=float("nan"))),
                        )
                    ]
                )
            ],
            "filters[0].all_of[0]",
            "finite",
        ),
        (
            [pb.Filter(all_of=[pb.FilterCondition(column="date", any_of=pb.FilterValues(values=[pb.FilterValue()]))])],
            "filters[0].all_of[0]",
            "a value is empty",
        ),
    ],
)
def test_bad_filters_are_errors_by_field(
    served: dict[int, Served], filters: list[pb.Filter], field: str, words: str
) -> None:
    with pytest.raises(ArgumentError) as refused:
        served[2].search(np.ones((3, 16), np.float32), 2, filters=filters)
    assert refused.value.field == field
    assert words in str(refused.value)


def test_a_column_without_any_value_is_met_by_nothing(served: dict[int, Served]) -> None:
    queries_QD = np.ones((1, 16), np.float32)
    assert (served[3].search(queries_QD, 2, filters=[where(empty="a")]).ids == -1).all()
    assert (served[3].search(queries_QD, 2, filters=[where(empty={"not_in": ["a"]})]).ids >= 0).all()


def test_true_and_one_are_different_values_also_in_what_is_kept(served: dict[int, Served]) -> None:
    filters = Filters(served[1].snapshot.documents)
    masks = [filters.allowed([Condition("weight", (value,))]) for value in (1.0, True, "1")]
    for mask, kind in zip(masks, ("number", "flag", "text"), strict=True):
        assert mask is not None
        held = [BY_ID[served[1].names[n]]["weight"] for n in np.flatnonzero(mask)]
        assert held
        assert all({"number": isinstance(v, int | float) and not isinstance(v, bool) and v == 1,
                    "flag": v is True, "text": v == "1"}[kind] for v in held)  # fmt: skip
    assert filters.allowed([Condition("weight", (True,), field="other")]) is masks[1]


def test_ranges_of_numbers_are_exact_beyond_what_a_double_holds() -> None:
    import pyarrow as pa

    column = Column(pa.array([str(2**53 + 1), str(2**53), "1e3", None, "[1]"], pa.large_string()))
    ((first, end),) = column.ranks(Condition("n", range=Range(above=float(2**53))))
    assert ((column.ranks_N >= first) & (column.ranks_N < end)).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("given", [float("nan"), 2**60, None, b"x", {"least": 1}, {}, [["a"]]])
def test_the_client_refuses_what_no_filter_holds(given: Any) -> None:
    with pytest.raises(ArgumentError) as refused:
        where(weight=given)
    assert refused.value.field == "weight"


def test_a_filter_that_many_queries_share_is_read_and_applied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    read_one = filters_module._read_filter

    def watched(message: pb.Filter, field: str) -> tuple[Condition, ...]:
        read.append(field)
        return read_one(message, field)

    monkeypatch.setattr(filters_module, "_read_filter", watched)
    one, other, none = where(language="de"), where(language="en"), pb.Filter()
    found = filters_module.read_filters([none, other, one, other, one, none], 6)
    assert found is not None
    assert read == ["filters[0]", "filters[1]", "filters[2]"]
    assert found.filter_Q.tolist() == [0, 1, 2, 1, 2, 0]
    assert found.different[0] == ()
    for_all = filters_module.read_filters([one], 3)
    assert for_all is not None
    assert for_all.filter_Q.tolist() == [0, 0, 0]
    assert filters_module.read_filters([], 3) is None
