"""What the retriever does when parts of it fail: loads, the registry, replicas, the embedder, its own options."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from openbook_core.errors import MismatchError, OpenbookError, OverloadedError, UnavailableError
from openbook_core.fingerprint import Fingerprint
from openbook_core.rpc.server import start_server
from openbook_core.vectors import encode_vectors
from openbook_database.contract import Contract
from openbook_database.manifest import Probes
from openbook_database.registry import open_registry
from openbook_database.registry.records import Control, LoadState
from openbook_database.snapshot import Snapshot
from openbook_database.testing import build_tiny_snapshot
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_proto.v1 import retriever_pb2_grpc
from openbook_retriever import fan_out
from openbook_retriever.attach import EmbedderGate
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.fan_out import Answers, Question
from openbook_retriever.holdings import Holdings
from openbook_retriever.metrics import REGISTRY_ERRORS
from openbook_retriever.replicas import Replicas
from openbook_retriever.router_engine import RouterEngine
from openbook_retriever.router_watch import RouterWatch, View
from openbook_retriever.shard_watch import ShardWatch

OLD = "a" * 64
CONTRACT = Contract(Fingerprint({"t": 1}), Fingerprint({"e": 1}), "{text}", 2, "inner_product", 4)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- watches ---


@contextmanager
def watching(tmp_path: Path, **options: Any) -> Iterator[tuple[Any, str, Holdings]]:
    """A shard's watch over a registry with one tiny snapshot, live: (registry, snapshot, holdings)."""
    registry = open_registry(tmp_path / "registry")
    built = build_tiny_snapshot(tmp_path / "snapshot")
    registry.register("tiny", built.path)
    registry.prepare("tiny", built.snapshot_id)
    holdings = Holdings()
    config = RetrieverConfig(
        role="shard",
        registry=str(tmp_path / "registry"),
        poll_interval_s=0.02,
        heartbeat_s=0.05,
        check_nice=0,
        **options,
    )
    watch = ShardWatch(config, registry, holdings)
    watch.start("one", "127.0.0.1:1")
    try:
        yield registry, built.snapshot_id, holdings
    finally:
        watch.stop()


def test_a_load_that_fails_in_any_way_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Snapshot:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Snapshot, "open", broken)
    with watching(tmp_path, load_retry_s=0.1) as (_, snapshot, holdings):
        wait_for(lambda: [held.state for held in holdings.report("tiny")] == [LoadState.FAILED])
        assert holdings.report("tiny")[0].error == "ZeroDivisionError: a bug"
        monkeypatch.undo()
        wait_for(lambda: [held.state for held in holdings.report("tiny")] == [LoadState.READY])
        assert holdings.report("tiny")[0].snapshot == snapshot


def test_no_error_ends_the_heartbeats_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watching(tmp_path) as (registry, snapshot, _):
        wait_for(lambda: any(replica.serves(snapshot) for replica in registry.replicas("tiny")))

        def broken(database: str) -> Control:
            raise ZeroDivisionError("a bug")

        before = REGISTRY_ERRORS.collect()[0].samples[0].value
        monkeypatch.setattr(registry, "control", broken)
        wait_for(lambda: REGISTRY_ERRORS.collect()[0].samples[0].value > before + 2)
        monkeypatch.undo()
        (report,) = registry.replicas("tiny")
        wait_for(lambda: registry.replicas("tiny")[0].heartbeat > report.heartbeat)


def test_a_snapshot_that_is_not_registered_does_not_keep_the_others_from_being_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watching(tmp_path) as (registry, snapshot, _):
        wait_for(lambda: any(replica.serves(snapshot) for replica in registry.replicas("tiny")))
        monkeypatch.setattr(registry, "control", lambda database: Control("tiny", 9, 9, live=OLD, previous=snapshot))
        wait_for(lambda: registry.replicas("tiny")[0].epoch == 9)
        assert registry.replicas("tiny")[0].serves(snapshot)


def test_a_stopped_shard_has_no_report(tmp_path: Path) -> None:
    with watching(tmp_path) as (registry, snapshot, _):
        wait_for(lambda: any(replica.serves(snapshot) for replica in registry.replicas("tiny")))
    assert registry.replicas("tiny") == []


def test_no_error_ends_the_heartbeats_of_a_router() -> None:
    reports: list[int] = []

    def contract(database: str) -> Contract:
        if len(reports) == 1:
            reports.append(-1)
            raise ZeroDivisionError("a bug")
        return CONTRACT

    registry: Any = SimpleNamespace(
        contract=contract,
        control=lambda database: Control("book", 1, 1),
        replicas=lambda database: [],
        leases=lambda database: [],
        report_router=lambda report: reports.append(report.epoch),
        withdraw=lambda report: reports.append(-2),
    )
    config = RetrieverConfig(
        role="router", registry="unused", databases=("book",), poll_interval_s=0.01, heartbeat_s=0.02
    )
    watch = RouterWatch(config, registry)
    watch.start("router", "127.0.0.1:1")
    wait_for(lambda: len(reports) >= 4)
    watch.stop()
    assert reports[:4] == [1, -1, 1, 1]
    assert reports[-1] == -2


# --- replicas ---


class FakeShard(retriever_pb2_grpc.RetrieverServicer):
    """Counts its calls; raises `error` where there is one."""

    def __init__(self, error: OpenbookError | None = None) -> None:
        self.calls: list[int] = []
        self.error = error

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:
        self.calls.extend(request.shards or [request.shard])
        if self.error is not None:
            raise self.error
        return pb.SearchReply(snapshot=request.snapshot)


@contextmanager
def shards(*servicers: FakeShard) -> Iterator[list[str]]:
    running = [
        start_server(
            lambda server, servicer=servicer: retriever_pb2_grpc.add_RetrieverServicer_to_server(servicer, server),  # type: ignore[misc]
            host="127.0.0.1",
            port=0,
            services=["openbook_proto.v1.Retriever"],
        )
        for servicer in servicers
    ]
    try:
        yield [server.address for server in running]
    finally:
        for server in running:
            server.stop(0)


def ask(replicas: Replicas, addresses: list[str], number: int) -> Answers[Any]:
    def bytes_for(shards: tuple[int, ...]) -> bytes:
        return pb.SearchRequest(database="book", snapshot=OLD, shards=shards).SerializeToString()

    question = Question("Search", range(number), bytes_for, 1)
    return fan_out.ask(replicas, question, lambda shard: addresses, lambda: lambda shard: addresses, 10.0)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_replica_of_a_shard_gets_its_turn(number: int) -> None:
    servicers = FakeShard(), FakeShard()
    with shards(*servicers) as addresses:
        replicas = Replicas(hedge_share=0)
        for _ in range(6):
            assert ask(replicas, addresses, number).missing == {}
    assert [sorted(servicer.calls) for servicer in servicers] == [sorted([*range(number)] * 3)] * 2


def test_where_all_replicas_are_overloaded_the_caller_is_told_when_to_come_back() -> None:
    servicers = (
        FakeShard(OverloadedError("full", retry_after_s=0.5)),
        FakeShard(OverloadedError("full", retry_after_s=2.5)),
    )
    with shards(*servicers) as addresses:
        answers = ask(Replicas(), addresses, 1)
        assert set(answers.missing) == set(answers.overloaded) == {0}
        assert [servicer.calls for servicer in servicers] == [[0], [0]]
        with pytest.raises(OverloadedError) as refused:
            router(addresses).search(search_request(), 10.0)
        assert refused.value.retry_after_s in (0.5, 2.5)
        servicers[0].error = None
        assert ask(Replicas(), addresses, 1).overloaded == {}


def test_one_shard_overloaded_and_one_gone_is_unavailable() -> None:
    with shards(FakeShard(OverloadedError("full"))) as addresses, pytest.raises(UnavailableError, match="shard 1"):
        router(addresses, ["127.0.0.1:1"]).search(search_request(), 10.0)


def search_request() -> pb.SearchRequest:
    return pb.SearchRequest(database="book", k=1, queries=encode_vectors(np.ones((1, 2), np.float32)))


def router(*addresses_of_shards: list[str]) -> RouterEngine:
    class FixedView(View):
        def serving(self, snapshot: str, shard: int) -> list[str]:
            return addresses_of_shards[shard]

    view = FixedView(Control("book", 1, 1, live=OLD), CONTRACT)
    watch: Any = SimpleNamespace(
        view=lambda database, min_epoch=0: view,
        refresh=lambda database: view,
        manifest=lambda database, snapshot: SimpleNamespace(shards=addresses_of_shards),
    )
    return RouterEngine(watch, Replicas(), None)


# --- the embedder ---


class FakeEmbedder:
    """Says of itself that it has `says`; answers a query as the next of `answers`."""

    def __init__(self, says: Fingerprint, *answers: Fingerprint) -> None:
        self.says, self.answers = says, list(answers)

    def info(self, *, timeout_s: float) -> Any:
        return SimpleNamespace(fingerprint=self.says)

    def embed(self, texts: list[str], role: str, *, timeout_s: float) -> Any:
        if role == "passage":
            return SimpleNamespace(vectors=np.ones((len(texts), 2), np.float32), fingerprint_digest=self.says.digest)
        answer = self.answers.pop(0)
        right = answer == CONTRACT.embedder
        return SimpleNamespace(vectors=np.full((1, 2), float(right), np.float32), fingerprint_digest=answer.digest)


def embed(client: FakeEmbedder) -> np.ndarray:
    gate = EmbedderGate("127.0.0.1:1")
    gate.close()
    gate._client = client  # type: ignore[assignment]
    return gate.embed("book", ["a text"], CONTRACT, Probes(("a probe",), np.ones((1, 2), np.float32)), 1.0)


OTHER = Fingerprint({"e": 2})


def test_vectors_of_another_embedder_are_never_returned() -> None:
    right = CONTRACT.embedder
    assert embed(FakeEmbedder(right, right)).tolist() == [[1.0, 1.0]]
    assert embed(FakeEmbedder(right, OTHER, right)).tolist() == [[1.0, 1.0]], "it was replaced in between"
    with pytest.raises(MismatchError, match="do several processes share the address"):
        embed(FakeEmbedder(right, OTHER, OTHER))
    with pytest.raises(MismatchError, match="e: database 'book' has 1"):
        embed(FakeEmbedder(OTHER, OTHER))


# --- the process ---


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--role", "shard", "--registry", "etcd://nowhere"], 2),
        (["--role", "shard", "--registry", "redis://127.0.0.1:1"], 1),
        (["--role", "shard", "--registry", "{folder}", "--member-index", "3"], 2),
        (["--role", "router", "--registry", "{folder}", "--port", "{port}"], 1),
    ],
)
def test_exit_codes_tell_wrong_options_from_other_errors(tmp_path: Path, options: list[str], code: int) -> None:
    with shards(FakeShard()) as addresses:
        given = [option.format(folder=tmp_path, port=addresses[0].rpartition(":")[2]) for option in options]
        done = subprocess.run(
            [sys.executable, "-m", "openbook_retriever", *given],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_the_report_is_withdrawn_while_the_server_still_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from openbook_retriever import app

    events: list[str] = []

    class Running:
        address = "127.0.0.1:1"

        def set_ready(self, ready: bool) -> None:
            events.append(f"ready {ready}")

        def wait_for_signal(self, before_stop: Callable[[], None]) -> None:
            before_stop()
            events.append("stop")

    monkeypatch.setattr(app, "start_server", lambda *_, **__: Running())
    config = RetrieverConfig(role="shard", registry=str(tmp_path), name="one")
    stop = ShardWatch.stop

    def noted(watch: ShardWatch) -> None:
        events.append("withdraw")
        stop(watch)

    monkeypatch.setattr(ShardWatch, "stop", noted)
    app.serve(config)
    assert events[:4] == ["ready True", "ready False", "withdraw", "stop"]
    assert "127.0.0.1:1" in capsys.readouterr().out
