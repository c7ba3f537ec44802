"""Background load by clients that never retry, and what each call returned."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from openbook_core.clients import RetrieverClient
from openbook_core.errors import OpenbookError


@dataclass(frozen=True)
class Call:
    """One request: when it began (monotonic seconds), how long it took, and the passages of its reply."""

    kind: str
    start: float
    seconds: float
    error: str = ""
    snapshot: str = ""
    epoch: int = 0
    passages: tuple[tuple[int, str], ...] = ()
    answer: str = ""
    titles: tuple[str, ...] = ()
    cross_attention: str = ""


def complete(client: httpx.Client, url: str, question: str, *, max_tokens: int, k: int | None = None) -> Call:
    """One chat completion over REST."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens}
    body["temperature"] = 0
    if k is not None:
        body["retrieval"] = {"k": k}
    start = time.monotonic()
    try:
        reply = client.post(f"{url}/v1/chat/completions", json=body)
        seconds = time.monotonic() - start
        if reply.status_code != 200:
            return Call("completion", start, seconds, error=f"HTTP {reply.status_code}: {reply.text[:200]}")
        data = reply.json()
        retrieval = data["retrieval"]
        passages = retrieval["passages"]
        return Call(
            "completion",
            start,
            seconds,
            snapshot=retrieval["snapshot"],
            epoch=retrieval["epoch"],
            passages=tuple((int(p["chunk_id"]), p["text"]) for p in passages),
            answer=data["choices"][0]["message"]["content"],
            cross_attention=retrieval["cross_attention"],
            titles=tuple(f"{p['title']} #{p['chunk_id']}" for p in passages if p["span"]),
        )
    except (httpx.HTTPError, KeyError, ValueError) as error:
        return Call("completion", start, time.monotonic() - start, error=f"{type(error).__name__}: {error}")


def search(client: RetrieverClient, database: str, text: str, k: int) -> Call:
    """One SearchText over gRPC."""
    start = time.monotonic()
    try:
        result = client.search_text(database, [text], k, text=True, timeout_s=60)
    except OpenbookError as error:
        return Call("search_text", start, time.monotonic() - start, error=error.message)
    ids = [int(i) for i in result.ids.ravel() if i >= 0]
    return Call(
        "search_text",
        start,
        time.monotonic() - start,
        snapshot=result.snapshot,
        epoch=result.epoch,
        passages=tuple(zip(ids, result.chunks.texts, strict=True)),
    )


@dataclass
class Load:
    """Runs each kind of call in its own thread at a fixed pace until `finish`, and at least its minimum of calls."""

    completion: Callable[[int], Call]
    search_text: Callable[[int], Call]
    completions: int = 100
    searches: int = 400
    calls: list[Call] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [
            threading.Thread(target=self._run, args=(self.completion, self.completions, 1.0), daemon=True),
            threading.Thread(target=self._run, args=(self.search_text, self.searches, 0.25), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Wait until the minimum was sent, then stop."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, call: Callable[[int], Call], minimum: int, pace_s: float) -> None:
        number = 0
        while number < minimum or not self._stop.is_set():
            begun = time.monotonic()
            self.calls.append(call(number))
            number += 1
            if not self._stop.is_set():
                self._stop.wait(max(0.0, pace_s - (time.monotonic() - begun)))


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of the values lie (nearest rank), or None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def latency(calls: Sequence[Call], begin: float, end: float) -> dict[str, Any]:
    """p50 and p99 in milliseconds of each kind of call, for those under way between `begin` and `end`, and others."""
    report: dict[str, Any] = {}
    for kind in ("completion", "search_text"):
        inside = [c.seconds * 1e3 for c in calls if c.kind == kind and c.start <= end and c.start + c.seconds >= begin]
        outside = [c.seconds * 1e3 for c in calls if c.kind == kind and (c.start > end or c.start + c.seconds < begin)]
        report[kind] = {
            where: {"calls": len(some), "p50_ms": percentile(some, 0.5), "p99_ms": percentile(some, 0.99)}
            for where, some in (("during_swap", inside), ("outside", outside))
        }
    return report
