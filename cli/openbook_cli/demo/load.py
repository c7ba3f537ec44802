"""Background load by clients that never retry, and what each call returned."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from openbook_core.clients import RetrieverClient

Window = tuple[float, float]


@dataclass(frozen=True)
class Call:
    """One request: when it began (monotonic seconds), how long it took, and the passages of its reply.

    `passages` holds (chunk id, text, continuation) of all that were found; `shown` what the model was shown of them;
    `neighbors` the chunk ids that the cross attention read for `question`.
    """

    kind: str
    start: float
    seconds: float
    error: str = ""
    snapshot: str = ""
    passages: tuple[tuple[int, str, str], ...] = ()
    answer: str = ""
    shown: tuple[str, ...] = ()
    cross_attention: str = ""
    question: str = ""
    neighbors: tuple[int, ...] = ()


def complete(client: httpx.Client, url: str, question: str, max_tokens: int) -> Call:
    """One chat completion over REST."""
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens, "temperature": 0}
    start = time.monotonic()
    reply = client.post(f"{url}/v1/chat/completions", json=body)
    seconds = time.monotonic() - start
    if reply.status_code != 200:
        return Call("completion", start, seconds, error=f"HTTP {reply.status_code}: {reply.text[:200]}")
    data: dict[str, Any] = reply.json()
    passages = data["retrieval"]["passages"]
    return Call(
        "completion",
        start,
        seconds,
        snapshot=data["retrieval"]["snapshot"],
        passages=tuple((int(each["chunk_id"]), each["text"], each["continuation"]) for each in passages),
        answer=data["choices"][0]["message"]["content"],
        shown=tuple(f"{each['text']} #{','.join(map(str, each['chunk_ids']))}" for each in data["retrieval"]["shown"]),
        cross_attention=data["retrieval"]["cross_attention"],
    )


def search(client: RetrieverClient, database: str, text: str, k: int) -> Call:
    """One SearchText over gRPC."""
    start = time.monotonic()
    result = client.search_text(database, [text], k, text=True, timeout_s=60)
    seconds = time.monotonic() - start
    ids = [int(i) for i in result.ids.ravel() if i >= 0]
    passages = tuple(zip(ids, result.chunks.texts, result.chunks.continuation_texts, strict=True))
    return Call("search_text", start, seconds, snapshot=result.snapshot, passages=passages)


def attempt(kind: str, call: Callable[[], Call]) -> Call:
    """Make one call; whatever goes wrong, or a reply without a passage, is a failed call and never goes unnoticed."""
    start = time.monotonic()
    try:
        done = call()
    except Exception as error:  # noqa: BLE001  an error in the client is a failed request like any other
        return Call(kind, start, time.monotonic() - start, error=f"{type(error).__name__}: {error}")
    if not done.error and not done.passages and not done.neighbors:
        return Call(kind, done.start, done.seconds, error="the reply holds no passage")
    return done


@dataclass
class Load:
    """Sends each kind of call from its own thread at a steady pace, until `finish` and at least `minimum` of it.

    `kinds` maps a kind to (call by number, minimum, seconds from one start to the next).
    """

    kinds: dict[str, tuple[Callable[[int], Call], int, float]]
    calls: list[Call] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._run, args=(kind,), daemon=True) for kind in self.kinds]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Wait until the minimum of each kind was sent, then stop."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, kind: str) -> None:
        call, minimum, pace_s = self.kinds[kind]
        number = 0
        while number < minimum or not self._stop.is_set():
            begun = time.monotonic()
            self.calls.append(attempt(kind, lambda n=number: call(n)))  # type: ignore[misc]
            number += 1
            time.sleep(max(0.0, pace_s - (time.monotonic() - begun)))


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of the values lie (nearest rank), or None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def latency(calls: Sequence[Call], windows: dict[str, Sequence[Window]]) -> dict[str, Any]:
    """For each kind of call and each name in `windows`: calls under way in one of them, p50, p99 and max in ms."""
    report: dict[str, Any] = {}
    for kind in sorted({call.kind for call in calls}):
        report[kind] = {}
        for name, spans in windows.items():
            some = [
                call.seconds * 1e3
                for call in calls
                if call.kind == kind
                and not call.error
                and any(call.start <= end and call.start + call.seconds >= begin for begin, end in spans)
            ]
            report[kind][name] = {
                "calls": len(some),
                "p50_ms": percentile(some, 0.5),
                "p99_ms": percentile(some, 0.99),
                "max_ms": max(some, default=None),
            }
    return report
