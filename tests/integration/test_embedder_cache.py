"""The embedder's cache against a real Redis: what hits, what never does, damage, outages, and what stays out of it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import struct
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import torch
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from openbook_core import cache as cache_module
from openbook_core.clients import EmbedderClient
from openbook_core.clients.embedder import EmbedResult
from openbook_core.errors import ArgumentError, OverloadedError, UnavailableError
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.registry.local_redis import LocalRedis, free_port
from openbook_database.remote_encoder import RemoteEncoder
from openbook_database.testing import tiny_rows, tiny_tokenizer, write_rows
from openbook_embedder.__main__ import parse_args
from openbook_embedder.cache import VectorCache
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.metrics import EmbedderMetrics

sys.path.insert(0, str(Path(__file__).parent))
from embedder_support import MODEL, RunningEmbedder, running_embedder, write_tiny_encoder

TEXTS = ["Canada", "land and water", "the islands of the north"]
# Vectors of length one in float32, which batch mates may change by this much (see test_embedder_batch_mates).
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[EncoderEngine]:
    threads = torch.get_num_threads()
    yield EncoderEngine.load(folder, dtype="float32", threads=1, options=EncoderOptions(pooling="mean"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    with LocalRedis(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no outage; the tests of outages shorten it."""
    monkeypatch.setattr(cache_module, "_TIMEOUT_S", 10.0)


@pytest.fixture
def store(server: LocalRedis) -> redis.Redis:
    """A second client on the server, emptied."""
    client = redis.Redis(port=server.port)
    client.flushall()
    return client


@pytest.fixture
def running(engine: EncoderEngine, server: LocalRedis, store: redis.Redis) -> Iterator[RunningEmbedder]:
    with running_embedder(engine, cache=server.url, cache_ttl_s=1000) as embedder:
        yield embedder


@pytest.fixture
def client(running: RunningEmbedder) -> Iterator[EmbedderClient]:
    with EmbedderClient(running.address) as client:
        yield client


@pytest.fixture
def encoded(engine: EncoderEngine, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The token ids of every text that the encoder was given, in order."""
    seen: list[list[int]] = []
    encode = engine.encode_batch

    def watched(ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        seen.extend(map(list, ids))
        return encode(ids)

    monkeypatch.setattr(engine, "encode_batch", watched)
    return seen


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def texts(running: RunningEmbedder) -> dict[str, float]:
    """Texts by what the cache knew of them."""
    outcomes = ("hit", "miss", "error", "bypassed")
    counts = {each: running.value("openbook_embedder_cache_texts_total", outcome=each) for each in outcomes}
    return {name: count for name, count in counts.items() if count}


def writes(running: RunningEmbedder, outcome: str = "stored") -> float:
    return running.value("openbook_embedder_cache_writes_total", outcome=outcome)


def post(running: RunningEmbedder, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"{running.http}/v1/embeddings", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def key_of(engine: EncoderEngine, ids: Sequence[int], prefix: str = "openbook:") -> bytes:
    digest = hashlib.sha256(b"".join(each.to_bytes(4, "little") for each in ids)).hexdigest()
    return f"{prefix}vectors:{engine.fingerprint.digest}:float32:{digest}".encode()


# --- what hits ---


def test_every_endpoint_finds_what_another_one_encoded(
    running: RunningEmbedder, client: EmbedderClient, engine: EncoderEngine, encoded: list[list[int]]
) -> None:
    ids = engine.tokenize(TEXTS).ids
    first = client.embed(TEXTS[:2], "passage")
    assert first.cached == 0
    wait_for(lambda: writes(running) == 2)
    mixed = client.embed([TEXTS[1], TEXTS[2], TEXTS[0]], "passage")
    assert (mixed.cached, encoded) == (2, [*ids[:2], ids[2]])
    assert (mixed.vectors[[2, 0]] == first.vectors).all()
    assert np.abs(mixed.vectors - engine.encode([TEXTS[1], TEXTS[2], TEXTS[0]])).max() <= TOLERANCE
    assert mixed.token_counts == [len(ids[1]), len(ids[2]), len(ids[0])]
    wait_for(lambda: writes(running) == 3)
    del encoded[:]
    assert client.embed_ids(ids, "query", tokenizer=running.intake.tokenizer.digest).cached == 3
    over_http = post(running, {"model": f"{MODEL}-passage", "input": TEXTS})
    assert over_http["cached"] == 3
    assert (np.array([each["embedding"] for each in over_http["data"]], "f4") == mixed.vectors[[2, 0, 1]]).all()
    streamed = [each for each in client.embed_stream([TEXTS, ["new"]], "passage") if isinstance(each, EmbedResult)]
    assert [each.cached for each in streamed] == [3, 0]
    assert encoded == engine.tokenize(["new"]).ids
    assert texts(running) == {"miss": 2 + 1 + 1, "hit": 2 + 3 + 3 + 3}


def test_a_value_is_the_vector_under_fingerprint_dtype_and_ids_for_a_while(
    running: RunningEmbedder, client: EmbedderClient, engine: EncoderEngine, store: redis.Redis
) -> None:
    vectors_ND = client.embed(TEXTS, "query").vectors
    wait_for(lambda: writes(running) == 3)
    keys = [key_of(engine, ids) for ids in engine.tokenize(TEXTS).ids]
    assert sorted(store.keys()) == sorted(keys)
    for key, vector_D in zip(keys, vectors_ND, strict=True):
        data = vector_D.astype("<f4").tobytes()
        assert store.get(key) == b"OBV\x01" + struct.pack("<II", 32, zlib.crc32(data)) + data
        assert 900_000 < store.pttl(key) <= 1_000_000


def test_roles_share_where_their_prompts_are_equal_and_only_there(
    running: RunningEmbedder, client: EmbedderClient, folder: Path, server: LocalRedis
) -> None:
    client.embed(TEXTS, "passage")
    wait_for(lambda: writes(running) == 3)
    assert client.embed(TEXTS, "query").cached == 3
    options = EncoderOptions(pooling="mean", query_prompt="ask: ", passage_prompt="")
    prompted = EncoderEngine.load(folder, dtype="float32", options=options)
    with running_embedder(prompted, cache=server.url) as other, EmbedderClient(other.address) as asking:
        passages = asking.embed(TEXTS, "passage")
        wait_for(lambda: writes(other) == 3)
        queries = asking.embed(TEXTS, "query")
        assert (passages.cached, queries.cached) == (0, 0)
        assert np.abs(queries.vectors - prompted.encode_queries(TEXTS)).max() <= TOLERANCE
        assert np.abs(queries.vectors - passages.vectors).max() > 0.01


@pytest.mark.parametrize("changed", [{"fingerprint": "b" * 64}, {"dtype": "bfloat16"}, {"dimension": 5}])
def test_another_encoder_never_hits(server: LocalRedis, store: redis.Redis, changed: dict[str, Any]) -> None:
    ours, _ = direct(server.url)
    theirs, their_registry = direct(server.url, **changed)
    try:
        ours.keep([[1, 2]], np.ones((1, 4), np.float32))
        wait_for(lambda: ours.look_up([[1, 2]], None)[0] is not None)
        assert theirs.look_up([[1, 2]], None) == [None]
        damaged = their_registry.get_sample_value("openbook_embedder_cache_damaged_total")
        assert damaged == ("dimension" in changed)
    finally:
        ours.close()
        theirs.close()


def direct(url: str, **settings: Any) -> tuple[VectorCache, CollectorRegistry]:
    """A cache without a service, of an encoder with 4 elements."""
    settings = {"fingerprint": "a" * 64, "dtype": "float32", "dimension": 4, "ttl_s": 100.0, **settings}
    registry = CollectorRegistry()
    return VectorCache(url, metrics=EmbedderMetrics(registry), **settings), registry


def test_the_same_texts_at_the_same_time(
    running: RunningEmbedder, client: EmbedderClient, engine: EncoderEngine
) -> None:
    expected_ND = engine.encode([*TEXTS, TEXTS[0]])
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: client.embed([*TEXTS, TEXTS[0]], "passage"), range(40)))
    for each in results:
        assert np.abs(each.vectors - expected_ND).max() <= TOLERANCE
    counts = texts(running)
    assert sum(counts.values()) == 40 * 4
    assert counts["hit"] == sum(each.cached for each in results)
    wait_for(lambda: writes(running) == counts["miss"])


# --- what is no vector ---


def damages(value: bytes) -> dict[str, bytes]:
    flipped = value[:40] + bytes([value[40] ^ 1]) + value[41:]
    other = struct.pack("<4sII", b"OBV\x01", 31, zlib.crc32(value[12:-4])) + value[12:-4]
    return {
        "empty": b"",
        "header only": value[:12],
        "short": value[:-1],
        "long": value + b"\0",
        "flipped bit": flipped,
        "another dimension": other,
        "another dimension in the header": value[:4] + struct.pack("<I", 31) + value[8:],
        "another version": b"OBV\x02" + value[4:],
    }


def test_damage_is_a_miss_and_is_mended(
    running: RunningEmbedder, client: EmbedderClient, engine: EncoderEngine, store: redis.Redis
) -> None:
    vector_D = client.embed(TEXTS[:1], "query").vectors[0]
    wait_for(lambda: writes(running) == 1)
    key = key_of(engine, engine.tokenize(TEXTS[:1]).ids[0])
    value = store.get(key)
    assert isinstance(value, bytes)
    for count, (what, damaged) in enumerate(damages(value).items(), 1):
        store.set(key, damaged)
        again = client.embed(TEXTS[:1], "query")
        assert again.cached == 0, what
        assert np.abs(again.vectors[0] - vector_D).max() <= TOLERANCE
        assert running.value("openbook_embedder_cache_damaged_total") == count
        wait_for(lambda written=1 + count: writes(running) == written)
        assert store.get(key) == value
    store.delete(key)
    store.rpush(key, "a list")
    assert client.embed(TEXTS[:1], "query").cached == 0
    assert texts(running) == {"miss": 2 + len(damages(value))}


# --- outages ---


def test_nobody_waits_for_what_hangs_and_one_call_tries_after_a_pause(
    engine: EncoderEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "_PAUSE_S", 1000.0)
    monkeypatch.setattr(cache_module, "_TIMEOUT_S", 1.0)
    caplog.set_level(logging.INFO, "openbook_core.cache")
    with (
        LocalRedis(tmp_path / "redis") as server,
        running_embedder(engine, cache=server.url) as running,
        EmbedderClient(running.address) as client,
    ):
        client.embed(TEXTS, "query")
        wait_for(lambda: writes(running) == 3)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            stopped = client.embed(TEXTS, "query")
            assert (stopped.cached, texts(running)["error"]) == (0, 3)
            client.embed(TEXTS, "query")
            assert texts(running)["bypassed"] == 3
            wait_for(lambda: writes(running, "error") + writes(running, "dropped") == 6)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        client.embed(TEXTS, "query")
        assert texts(running)["bypassed"] == 6
        monkeypatch.setattr(cache_module, "_PAUSE_S", 0.0)
        wait_for(lambda: client.embed(TEXTS, "query").cached == 3)
        monkeypatch.setattr(cache_module, "_PAUSE_S", 1000.0)
        server.stop()
        counts = texts(running)
        for _ in range(3):
            assert client.embed(TEXTS, "query").cached == 0
        assert texts(running) == counts | {"error": counts["error"] + 3, "bypassed": counts["bypassed"] + 6}
        assert np.abs(client.embed(TEXTS, "query").vectors - engine.encode(TEXTS)).max() <= TOLERANCE
    reading = [each.getMessage() for each in caplog.records if "reading Redis" in each.getMessage()]
    assert [("fails" in each, "works again" in each) for each in reading] == [
        (True, False),
        (False, True),
        (True, False),
    ]


def test_a_lookup_that_never_returns_holds_up_no_call(server: LocalRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the name of Redis' host cannot be resolved, which no timeout of a socket ends."""
    cache, registry = direct(server.url)
    released = threading.Event()
    monkeypatch.setattr(cache_module, "_TIMEOUT_S", 0.05)
    monkeypatch.setattr(cache._redis._client, "mget", lambda keys: released.wait(30))
    try:
        # A caller that is in more of a hurry says nothing about Redis.
        assert cache.look_up([[1]], time.monotonic()) == [None]
        assert cache.look_up([[1], [2]], None) == [None, None]
        assert cache.look_up([[1], [2]], None) == [None, None]
        assert not released.is_set()
        value = registry.get_sample_value
        assert value("openbook_embedder_cache_texts_total", {"outcome": "error"}) == 3
        assert value("openbook_embedder_cache_texts_total", {"outcome": "bypassed"}) == 2
    finally:
        released.set()
        cache.close()


def test_what_cannot_be_written_in_time_is_dropped(server: LocalRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_MAX_UNWRITTEN", 3)
    cache, registry = direct(server.url)
    released = threading.Event()
    pipeline = cache._redis._client.pipeline
    monkeypatch.setattr(cache._redis._client, "pipeline", lambda **given: released.wait(30) and pipeline(**given))
    vectors_ND = np.ones((2, 4), np.float32)

    def written(outcome: str) -> float | None:
        return registry.get_sample_value("openbook_embedder_cache_writes_total", {"outcome": outcome})

    try:
        cache.keep([[1], [2]], vectors_ND)
        cache.keep([[3], [4]], vectors_ND)
        assert written("dropped") == 2
        released.set()
        wait_for(lambda: written("stored") == 2)
        cache.keep([[3], [4]], vectors_ND)
        wait_for(lambda: written("stored") == 4)
    finally:
        cache.close()


def test_without_redis_at_the_start_it_serves(
    engine: EncoderEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_PAUSE_S", 0.0)
    port = free_port()
    with (
        running_embedder(engine, cache=f"redis://127.0.0.1:{port}") as running,
        EmbedderClient(running.address) as client,
    ):
        assert client.embed(TEXTS, "query").cached == 0
        with LocalRedis(tmp_path / "redis", port=port):
            wait_for(lambda: client.embed(TEXTS, "query").cached == 3)


# --- what stays out of it ---


def test_a_build_neither_asks_nor_fills_it(
    running: RunningEmbedder, client: EmbedderClient, engine: EncoderEngine, store: redis.Redis, tmp_path: Path
) -> None:
    """Its bytes are those of a build in one process, though the cache holds other vectors for the same texts."""
    blocks = [["a", "b c d", *TEXTS], ["e f " * 9, "g"]]
    list(client.embed_stream(blocks, "passage"))
    wait_for(lambda: writes(running) == 7)
    data = np.full(32, 0.25, "<f4").tobytes()
    for key in list(store.scan_iter()):
        store.set(key, b"OBV\x01" + struct.pack("<II", 32, zlib.crc32(data)) + data)
    assert (client.embed(["a"], "passage").vectors == 0.25).all()
    for block, result in zip(blocks, client.embed_stream(blocks, "passage", exclusive=True), strict=True):
        assert isinstance(result, EmbedResult)
        assert result.vectors.tobytes() == engine.encode(block).tobytes()
    assert texts(running) == {"miss": 7, "hit": 1, "bypassed": 7}

    source = write_rows(tmp_path / "rows.jsonl", tiny_rows(20, words=80))
    settings = BuildSettings(chunk_length=16, embed_block=32)
    here, there = (
        build_snapshot(
            [source], tmp_path / name, database="tiny", tokenizer=tiny_tokenizer(), encoder=encoder, settings=settings
        )
        for name, encoder in (("here", engine), ("there", RemoteEncoder(client)))
    )
    assert here.snapshot_id == there.snapshot_id
    counts = texts(running)
    assert counts.pop("bypassed") >= 7 + there.chunks  # and the probes
    assert counts == {"miss": 7, "hit": 1}
    assert (writes(running), len(store.keys())) == (7, 7)


def test_cached_texts_need_neither_room_nor_encoder(
    engine: EncoderEngine, server: LocalRedis, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, waiting = ["land " * 200] * 5, ["water " * 200] * 5
    gate, entered, encode = threading.Event(), threading.Event(), engine.encode_batch

    def held(ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        entered.set()
        assert gate.wait(30)
        return encode(ids)

    settings = {"batch_tokens": 256, "max_queue_tokens": 1100, "cache": server.url}
    with (
        running_embedder(engine, **settings) as running,
        EmbedderClient(running.address) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        client.embed(known, "query")
        wait_for(lambda: writes(running) == 5)
        monkeypatch.setattr(engine, "encode_batch", held)
        calls = [pool.submit(client.embed, ["first"], "query")]
        assert entered.wait(30)
        calls.append(pool.submit(client.embed, waiting, "query"))
        wait_for(lambda: running.value("openbook_embedder_queue_texts") == 5)
        try:
            assert client.embed(known, "query").cached == 5
            calls.append(pool.submit(client.embed, [*known, "land"], "query"))
            wait_for(lambda: running.value("openbook_embedder_queue_texts") == 6)
            with pytest.raises(OverloadedError):
                client.embed([*known[:1], "land and water " * 40], "query")
            running.batcher.watch.fails()
            assert client.embed(known, "query").cached == 5
            with pytest.raises(UnavailableError):
                client.embed([*known, "sea"], "query")
        finally:
            gate.set()
        assert [each.result(60).cached for each in calls] == [0, 0, 5]


# --- settings ---


def test_it_is_set_by_options_and_the_password_does_not_show() -> None:
    config = parse_args(["--cache", "redis://:secret@host:1/2", "--cache-ttl-s", "60"])
    assert (config.cache, config.cache_ttl_s) == ("redis://:secret@host:1/2", 60)
    assert "secret" not in repr(config)
    assert parse_args([]).cache is None


def test_a_wrong_url_password_or_database_is_refused_at_the_start(
    server: LocalRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalRedis(tmp_path / "locked", password="right") as locked:
        wrong = {
            "http://:secret@host": "begins with neither redis",
            f"redis://:secret@127.0.0.1:{locked.port}": "refuses the user or the password",
            f"{server.url}/99": "has no database 99",
        }
        for url, complaint in wrong.items():
            with pytest.raises(ArgumentError, match=complaint) as refused:
                direct(url)
            assert refused.value.field == "cache"
            assert "secret" not in str(refused.value)
        monkeypatch.setenv("OPENBOOK_REDIS_PASSWORD", "right")
        direct(f"redis://127.0.0.1:{locked.port}")[0].close()
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ArgumentError, match=r"pip install 'openbook-embedder\[cache\]'"):
        direct(server.url)
