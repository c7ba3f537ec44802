"""The retriever's benchmark in its smallest size, whose figures follow from `raw`, and its fuzz, whose oracles hold."""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import pytest

from openbook_core.errors import ArgumentError
from openbook_core.rpc.server import start_server
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_proto.v1 import retriever_pb2_grpc
from openbook_retriever.holdings import Holdings
from openbook_retriever.shard_engine import ShardEngine
from openbook_retriever.shard_service import ShardService

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_figures_follow_from_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark, figures = importlib.import_module("retriever"), importlib.import_module("retriever_figures")
    size = dataclasses.replace(
        benchmark.QUICK,
        rows=2000,
        dimension=32,
        lists=16,
        nprobe=4,
        queries_of_64=256,
        queries_of_1=16,
        queries_of_32_callers=64,
        rounds=1,
        growth=(1000, 4000),
    )
    result: dict[str, Any] = json.loads(json.dumps(benchmark.run(size, tmp_path)))
    raw = result["raw"]
    asked_for = {"cpu_ratio_64", "cpu_ratio_1", "throughput_ratio_64", "added_p50_ms", "singles_ratio_32_callers"}
    assert asked_for | {"raw", "index"} <= set(result)
    sides = {"bare", "bare_mapped", "fast_scan", "openbook", "pickle", "http", "grpc"}
    assert set(raw["parts"]["calls_of_64"]) == set(raw["parts"]["calls_of_1"]) == sides
    same = raw["same_ids"]
    assert same.keys() == sides
    assert same["openbook"] > 0.99, "the same index; only ties of rough scores may differ"
    assert same["pickle"] == same["http"] == same["grpc"] == same["bare"] == 1
    trials = raw["parts"]["calls_of_64"]

    def rate(name: str) -> float:
        return median(trial["queries"] / trial["seconds"] for trial in trials[name])

    assert result["throughput_ratio_64"] == pytest.approx(rate("openbook") / rate("bare"), abs=1e-3)
    assert all(
        trial["queries"] == 256 and len(trial["latencies_ms"]) == 4 for each in trials.values() for trial in each
    )
    assert [line["rows"] for line in raw["growth"]] == [1000, 4000]
    assert figures.summarise(raw) == {name: value for name, value in result.items() if name != "raw"}
    assert any("cpu_ratio_64" in line for line in figures.report(result))
    assert set(result["goals_missed"]) <= asked_for
    for side, factor, missed in (("openbook", 1e6, True), ("bare", 1e12, False)):
        for trial in trials[side]:
            trial["cpu_s"] *= factor
        assert ("cpu_ratio_64" in figures.summarise(raw)["goals_missed"]) == missed
    picture = tmp_path / "result.png"
    figures.plot(result, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_fuzz_finds_nothing_wrong(tmp_path: Path) -> None:
    file = tmp_path / "fuzz.json"
    size = ["--requests", "150", "--documents", "20", "--members", "1"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "retriever_fuzz.py"), *size, "--json", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(file.read_text())
    outcomes = result["raw"]["outcomes"]
    assert result["requests"] == 150 == sum(outcomes.values())
    assert outcomes["search: OK"] > 10
    assert {outcome.partition(":")[0] for outcome in outcomes} >= {
        "refused",
        "refused_call",
        "garbage",
        "mutated",
        "late",
    }


def test_the_fuzz_notices_wrong_neighbours_wrong_fields_and_missing_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard's own engine behind a real server in this process, made wrong in one way after the other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    books, requests = importlib.import_module("retriever_books"), importlib.import_module("retriever_requests")
    book = books.build_books(tmp_path, 20)[0]
    holdings = Holdings()
    holdings.begin(book.name, book.id, (0, 1, 2))
    holdings.loaded(book.name, book.opened)
    holdings.set_live(book.name, book.id)
    engine = ShardEngine(holdings)
    service = ShardService(engine)

    def register(server: grpc.Server) -> None:
        retriever_pb2_grpc.add_RetrieverServicer_to_server(service, server)

    running = start_server(register, host="127.0.0.1", port=0, services=[])
    router = requests.Server(running.address)
    side = requests.Requests([requests.Server(running.address, (0, 1, 2)), router], [book])
    side._servers = side._servers[:1]
    try:
        for seed in range(12):
            for kind in ("search", "refused", "chunks", "garbage", "not_utf8"):
                getattr(side, kind)(random.Random(seed))
        search = engine.search

        def off_by_one(*arguments: Any) -> pb.SearchReply:
            reply = search(*arguments)
            ids_QK = np.frombuffer(reply.ids, "<i8")
            reply.ids = np.where(ids_QK > 0, ids_QK - 1, ids_QK).tobytes()
            return reply

        def wrong(*_: Any) -> pb.SearchReply:
            raise ArgumentError("nothing: is right", field="nothing")

        def broken(*_: Any) -> pb.SearchReply:
            raise RuntimeError("broken")

        def careless(*_: Any) -> pb.SearchReply:
            return pb.SearchReply()

        for kind, made, match in (
            ("search", off_by_one, "instead of"),
            ("refused", wrong, "was due"),
            ("refused", careless, "an answer where"),
            ("search", wrong, "for a valid request"),
            ("search", broken, "for a valid request"),
            ("mutated", broken, "INTERNAL"),
        ):
            monkeypatch.setattr(engine, "search", made)
            with pytest.raises(requests.Violation, match=match):
                make_several(getattr(side, kind))
    finally:
        side.close()
        running.stop(0)


def make_several(make: Callable[[random.Random], str]) -> None:
    for seed in range(20):
        make(random.Random(seed))
