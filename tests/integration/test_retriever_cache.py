"""The router's cache of answers in a real Redis: equal to the search to the byte, by snapshot, never partial, never needed.

Each request goes to a router with the cache and to one without, over the same shards.
"""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import redis

from openbook_core.clients import AdminClient, where
from openbook_core.clients.retriever import search_request
from openbook_core.errors import PreconditionError, Reason
from openbook_core.rpc.channel import open_channel
from openbook_core.rpc.status import error_from_rpc
from openbook_core.vectors import VECTOR_TYPES, encode_vectors
from openbook_database.registry.local_redis import LocalRedis, free_port
from openbook_database.testing import HashEncoder, build_tiny_snapshot, tiny_rows
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_proto.v1 import retriever_pb2_grpc

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import wait_for

BOOK = "tiny"
ENCODER = HashEncoder(24)
QUERIES = ENCODER.encode([f"ka{number} lo{number} the{number}" for number in range(6)])
ALL = {"tokens": True, "text": True, "documents": True}


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("editions")
    built = []
    for edition in ("old", "new"):
        rows = tiny_rows(40, edition=edition, words=60)
        for number, row in enumerate(rows):
            row["language"] = ("de", "en", "zh")[number % 3]
        fields = {"metadata": ("language",)}
        built.append(build_tiny_snapshot(folder / edition, rows=rows, shards=3, dimension=24, fields=fields).path)
    return built


@pytest.fixture(scope="module")
def embedder() -> Iterator[str]:
    running = support.start_embedder(ENCODER)  # type: ignore[arg-type]
    yield running.address
    running.stop(0)


@dataclass
class Served:
    """Two shard processes, a router with the cache and one without; the old edition is live."""

    registry: Path
    log: Path
    shards: list[support.Process]
    cached: retriever_pb2_grpc.RetrieverStub
    plain: retriever_pb2_grpc.RetrieverStub
    admin: AdminClient
    metrics: int
    server: LocalRedis
    store: redis.Redis
    ids: list[str]

    def count(self, metric: str, outcome: str = "") -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        name = f"openbook_retriever_cache_{metric}_total" + (f'{{outcome="{outcome}"}}' if outcome else "")
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    def stored(self, count: int) -> None:
        wait_for(lambda: self.store.dbsize() == count, f"{count} answers are in the cache, not {self.store.dbsize()}")

    def move(self, snapshot: str) -> None:
        """Activate, and wait until both routers have moved."""
        self.admin.prepare(BOOK, snapshot)
        wait_for(lambda: self._activated(snapshot), "it is activated")
        self.moved()

    def moved(self) -> None:
        def epochs() -> set[int]:
            state = self.admin.list(BOOK)[0]
            return {state.epoch, *(router.epoch for router in state.routers)}

        wait_for(lambda: len(epochs()) == 1, "the routers have moved")

    def _activated(self, snapshot: str) -> bool:
        try:
            return bool(self.admin.activate(BOOK, snapshot).epoch)
        except PreconditionError:
            return False

    def same(self, request: pb.SearchRequest) -> pb.SearchReply:
        """The cache's answer, which is the search's, or its error."""
        reply, expected = answer(self.cached, request), answer(self.plain, request)
        assert reply == expected
        assert isinstance(reply, pb.SearchReply), reply
        return reply


def answer(
    router: retriever_pb2_grpc.RetrieverStub, request: pb.SearchRequest
) -> pb.SearchReply | tuple[str, str, str]:
    """Without its timings and why shards are missing; of an error reason, field and text."""
    try:
        reply = router.Search(request, timeout=30)
    except grpc.RpcError as error:
        told = error_from_rpc(error, "router")
        return told.reason, told.field or "", told.message
    reply.ClearField("timings")
    for missing in reply.coverage.missing:
        missing.ClearField("why")
    return reply


def asked(count: int = len(QUERIES), **options: Any) -> pb.SearchRequest:
    return search_request(BOOK, options.pop("k", 4), queries=QUERIES[:count], **options)


@pytest.fixture
def served(tmp_path: Path, editions: list[Path], embedder: str) -> Iterator[Served]:
    metrics, log, registry = free_port(), tmp_path / "log.jsonl", tmp_path / "registry"
    with LocalRedis(tmp_path / "redis") as server:
        options = ("--cache", server.url, "--metrics-port", str(metrics), "--embedder", embedder)
        with support.cluster(tmp_path, registry, "--drain-s", "0", router=options) as processes:
            plain = support.start_process(registry, log, "--role", "router", "--embedder", embedder)
            processes.append(plain)
            with (
                open_channel(processes[0].address) as one,
                open_channel(plain.address) as other,
                AdminClient(processes[0].address) as admin,
            ):
                ids = [admin.register(BOOK, str(path)).snapshot for path in editions]
                stubs = (retriever_pb2_grpc.RetrieverStub(one), retriever_pb2_grpc.RetrieverStub(other))
                store = redis.Redis(port=server.port)
                running = Served(registry, log, processes[1:3], *stubs, admin, metrics, server, store, ids)
                running.move(ids[0])
                yield running


def test_a_hit_is_the_answer_of_the_search_and_a_swap_has_its_own(served: Served) -> None:
    chunk = served.same(asked(**ALL)).chunks
    names = [document.external_id for document in chunk.documents]
    half = encode_vectors(QUERIES.astype(np.float16))
    int8 = encode_vectors(QUERIES, VECTOR_TYPES["int8"])
    filters = [where(language=("de", "en")), *[where(language="zh")] * 5]
    requests = [
        asked(),
        asked(tokens=True),
        asked(documents=True),
        asked(k=3, **ALL),
        asked(min_score=0.2, **ALL),
        asked(exclude=[names[:3]] * 6, **ALL),
        asked(exclude=[names[:2], [], names[1:5], [], [], names], filters=[where(language="de")], **ALL),
        asked(filters=filters, **ALL),
        asked(allow_partial=True, snapshot=served.ids[0], **ALL),
    ]
    requests += [asked(**ALL), asked(text=True)]
    requests[-2].queries.CopyFrom(half)
    requests[-1].queries.CopyFrom(int8)
    for request in requests:
        served.same(request)
    misses = served.count("queries", "miss")
    wait_for(lambda: served.count("writes", "stored") == served.store.dbsize() > 30, "they are stored")
    before = served.count("queries", "hit")
    entries = served.store.dbsize()
    for request in requests:
        served.same(request)
    assert served.count("queries", "hit") == before + 6 * len(requests)
    assert (served.count("queries", "miss"), served.store.dbsize()) == (misses, entries)

    # Known ones among others, in another order, with what belongs to each.
    mixed = asked(**ALL, exclude=[[], names[:2], [], names[1:5], names[:1], []], filters=[where(language="de")])
    order = [1, 0, 4, 2, 3, 5]
    mixed.queries.CopyFrom(encode_vectors(QUERIES[order]))
    served.same(mixed)
    assert served.count("queries", "hit") - before - 6 * len(requests) == 4

    # What is wrong with one is told as ever, and an id that is not there is counted as ever.
    wrong = asked(filters=[*filters[:5], where(tenant="a")])
    assert answer(served.cached, wrong) == answer(served.plain, wrong)
    assert "filters[5]" in answer(served.cached, wrong)[1]
    unknown = asked(exclude=[names[:3]] * 5 + [["nobody", *names[:3]]])
    assert [served.same(unknown).unknown_exclusions for _ in range(2)] == [1, 1]
    few = asked(filters=filters[:2])
    assert answer(served.cached, few) == answer(served.plain, few)

    texts = pb.SearchTextRequest(texts=["ka1 lo1", "the7"], search=search_request(BOOK, 4, **ALL))
    found = [router.SearchText(texts, timeout=30).result for router in (served.cached, served.plain, served.cached)]
    for reply in found:
        reply.ClearField("timings")
    assert found == [found[1]] * 3

    for edition in (1, 0, 1):
        served.move(served.ids[edition])
        for request in requests[:2] * 2:
            assert served.same(request).snapshot == served.ids[edition]
    folders = {key.decode().split(":")[2] for key in served.store.scan_iter()}
    assert folders == set(served.ids)


def test_partial_answers_are_not_kept_and_gone_snapshots_not_given(served: Served) -> None:
    known = asked(3, allow_partial=True, **ALL)
    served.same(known)
    served.stored(3)
    served.shards[0].popen.kill()
    served.shards[0].popen.wait()
    # One that is known whole needs no shard, but for chunks; and no other gets a place.
    assert served.cached.Search(asked(3), timeout=30).missing_shards == []
    unknown = asked(k=5, allow_partial=True)
    for request in (unknown, known, asked(allow_partial=True, **ALL), asked(allow_partial=True)):
        wait_for(lambda request=request: served.same(request).missing_shards == [0, 2], "shards are missed")
        assert served.same(request).coverage.answered_chunks > 0
    assert answer(served.cached, asked(3, **ALL))[0] == Reason.SHARD_UNAVAILABLE  # type: ignore[index]
    assert (served.store.dbsize(), served.count("writes", "stored")) == (3, 3)
    shard = support.start_shard(served.registry, served.log, 0, "--drain-s", "0")
    try:
        wait_for(lambda: not answer(served.plain, known).missing_shards, "all are there again")  # type: ignore[union-attr]
        pinned = asked(3, snapshot=served.ids[0])
        assert served.same(pinned).snapshot == served.ids[0]
        served.move(served.ids[1])
        served.admin.retire(BOOK)

        for router in (served.plain, served.cached):
            wait_for(
                lambda router=router: (
                    isinstance(told := answer(router, pinned), tuple) and told[0] == Reason.SNAPSHOT_RETIRED
                ),
                "the old snapshot is gone",
            )
    finally:
        shard.stop()


def test_damage_is_a_miss_and_a_redis_that_hangs_or_is_gone_fails_nothing(served: Served) -> None:
    request = asked(**ALL)
    served.same(request)
    served.stored(6)
    kept = {key: served.store.get(key) for key in served.store.scan_iter()}
    for count, (key, value) in enumerate(kept.items()):
        flipped = value[:20] + bytes([value[20] ^ 1]) + value[21:]
        served.store.set(key, (b"", value[:-1], flipped, value + b"\0", b"OBV" + value[3:], b"x" * 12)[count])
    served.same(request)
    assert served.count("damaged") == 6
    wait_for(lambda: {key: served.store.get(key) for key in kept} == kept, "what was damaged is written again")
    os.kill(served.server.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            served.same(request)
        assert served.count("queries", "error") >= 6
        assert served.count("queries", "bypassed") >= 6
    finally:
        os.kill(served.server.pid, signal.SIGCONT)
    served.server.stop()
    for _ in range(3):
        served.same(asked(k=2))
