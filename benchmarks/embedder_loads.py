"""Callers of a service: in a closed loop (each calls again when answered) and in an open one (Poisson arrivals)."""

from __future__ import annotations

import base64
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from numpy.typing import NDArray

from openbook_core.clients.embedder import EmbedderClient
from openbook_core.errors import OpenbookError
from openbook_core.rpc.channel import open_channel
from openbook_proto.v1 import embedder_pb2, embedder_pb2_grpc

CALL_TIMEOUT_S = 120.0
CONNECT = "connect"
Embed = Callable[[Sequence[str]], NDArray[np.float32]]


class HttpCaller:
    """One connection that is kept, to /v1/embeddings of ours or /embeddings of infinity; vectors come in base64."""

    def __init__(self, url: str, path: str, model: str) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=CALL_TIMEOUT_S)
        self._path, self._model = path, model

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        body = json.dumps({"model": self._model, "input": list(texts), "encoding_format": "base64"})
        self._connection.request("POST", self._path, body, {"content-type": "application/json"})
        reply = self._connection.getresponse()
        data = reply.read()
        if reply.status != 200:
            raise OpenbookError(f"HTTP {reply.status}: {data[:300]!r}")
        rows = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in json.loads(data)["data"]]
        return np.stack(rows)

    def close(self) -> None:
        self._connection.close()


class GrpcCaller:
    """One channel to Embed."""

    def __init__(self, address: str) -> None:
        self._client = EmbedderClient(address)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._client.embed(texts, "passage", timeout_s=CALL_TIMEOUT_S).vectors

    def close(self) -> None:
        self._client.close()


Caller = HttpCaller | GrpcCaller


def closed_loop(callers: Sequence[Caller], texts: Sequence[str], per_call: int) -> dict[str, float]:
    """All callers at once until all texts are embedded: texts, and seconds from the first call to the last answer.

    Every caller makes one call of one text before the clock starts, so that it is connected; all are closed at the end.
    """
    calls = [list(each) for each in _batched(texts, per_call)]
    shares = [calls[number :: len(callers)] for number in range(len(callers))]

    def work(caller: Caller, share: Sequence[Sequence[str]]) -> int:
        return sum(len(caller.embed(call)) for call in share)

    try:
        with ThreadPoolExecutor(len(callers)) as pool:
            list(pool.map(lambda caller: caller.embed([CONNECT]), callers))
            start = time.perf_counter()
            done = sum(pool.map(work, callers, shares))
            seconds = time.perf_counter() - start
    finally:
        for caller in callers:
            caller.close()
    if done != len(texts):
        raise OpenbookError(f"{done} vectors for {len(texts)} texts")
    return {"texts": done, "seconds": seconds}


def open_loop(address: str, texts: Sequence[str], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Calls of one text at Poisson arrivals of `rate` a second, whether or not earlier ones are answered.

    Latency counts from the moment that a call was due, so a caller that is held up hides nothing.
    """
    random_, arrivals, due = random.Random(seed), [], 0.0
    while (due := due + random_.expovariate(rate)) < seconds:
        arrivals.append(due)
    latencies: list[float] = []
    failures: list[str] = []
    left = threading.Semaphore(0)

    def finish(due: float, call: Any) -> None:
        if call.code() is grpc.StatusCode.OK:
            latencies.append(time.perf_counter() - start - due)
        else:
            failures.append(str(call.code().name))
        left.release()

    with open_channel(address) as channel:
        embed = embedder_pb2_grpc.EmbedderStub(channel).Embed
        embed(_request(texts[0]), timeout=CALL_TIMEOUT_S)
        start = time.perf_counter()
        for number, due in enumerate(arrivals):
            time.sleep(max(0.0, start + due - time.perf_counter()))
            call = embed.future(_request(texts[number % len(texts)]), timeout=CALL_TIMEOUT_S)
            call.add_done_callback(lambda call, due=due: finish(due, call))
        for _ in arrivals:
            left.acquire()
    ordered = sorted(latencies)
    return {
        "rate": rate,
        "calls": len(arrivals),
        "failures": len(failures),
        "p50_ms": 1e3 * quantile(ordered, 0.5),
        "p99_ms": 1e3 * quantile(ordered, 0.99),
        "latencies_ms": [round(1e3 * each, 2) for each in latencies],
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the `ordered` values that at least `share` of them do not exceed; NaN of none."""
    return ordered[max(0, int(np.ceil(share * len(ordered))) - 1)] if ordered else float("nan")


def _request(text: str) -> embedder_pb2.EmbedRequest:
    return embedder_pb2.EmbedRequest(texts=[text], role=embedder_pb2.EMBED_ROLE_PASSAGE)


def _batched(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [texts[place : place + size] for place in range(0, len(texts), size)]
