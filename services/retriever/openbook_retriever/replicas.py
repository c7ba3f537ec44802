"""What a router knows of the processes that it calls: channels, what is under way at each, how long answers take, and
which of them hang.

The next call goes to the process with the fewest calls under way, of those that do not hang. One that was overtaken by
another process hangs until it answers, or for a while. Channels that nobody used for a minute are closed, so those of
processes that are gone too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import grpc

from openbook_core.rpc.channel import open_channel
from openbook_core.security.dial import Dial
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever.metrics import CHANNELS

_SERVICE = "/openbook_proto.v1.Retriever/"
_REPLIES: dict[str, Any] = {"Search": pb.SearchReply, "GetChunks": pb.GetChunksReply}
_IDLE_S = 60.0
_SUSPECT_S = 2.0
_SAMPLES, _LEAST_SAMPLES = 128, 16
_FIRST_HEDGE_S, _LEAST_HEDGE_S = 1.0, 0.02
_SAVED = 10.0


@dataclass
class Process:
    """One address. Owned by `Replicas`, which alone changes it."""

    address: str
    channel: grpc.Channel
    methods: dict[str, Any]
    under_way: int = 0
    used: float = 0.0
    turn: int = 0
    suspect_until: float = 0.0


@dataclass
class _Durations:
    """Seconds of the last answers to calls of about one size, and their 95th percentile."""

    last: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    taken: int = 0
    p95: float = _FIRST_HEDGE_S

    def add(self, seconds: float) -> None:
        self.last.append(seconds)
        self.taken += 1
        if self.taken % _LEAST_SAMPLES == 0:
            self.p95 = sorted(self.last)[int(0.95 * (len(self.last) - 1))]


class Replicas:
    """Processes by address, opened when they are first called; safe to use from several threads.

    `hedge_share`: extra calls, as a share of all, that may go out because an answer takes longer than it mostly does.
    """

    def __init__(self, dial: Dial | None = None, *, hedge_share: float = 0.05) -> None:
        self._dial = dial
        self._hedge_share = hedge_share
        self._lock = Lock()
        self._processes: dict[str, Process] = {}
        self._durations: dict[tuple[str, int], _Durations] = {}
        self._turn = 0
        self._budget = _SAVED if hedge_share else 0.0
        self._swept = time.monotonic()

    def choose(self, addresses: Iterable[str]) -> str:
        """The address to call next; the one that was called longest ago, where several have as little to do."""
        with self._lock:
            now = time.monotonic()

            def rank(address: str) -> tuple[bool, int, int]:
                known = self._processes.get(address)
                return (False, 0, 0) if known is None else (known.suspect_until > now, known.under_way, known.turn)

            return min(addresses, key=rank)

    def begin(self, address: str, method: str) -> tuple[Process, Any]:
        """The process and its stub for `method`, which takes a request's bytes; `end` must follow."""
        with self._lock:
            now = time.monotonic()
            process = self._processes.get(address)
            if process is None:
                channel = open_channel(address, self._dial)
                methods = {
                    name: channel.unary_unary(
                        _SERVICE + name, request_serializer=bytes, response_deserializer=reply.FromString
                    )
                    for name, reply in _REPLIES.items()
                }
                process = self._processes[address] = Process(address, channel, methods)
            self._turn += 1
            process.turn, process.used = self._turn, now
            process.under_way += 1
            self._budget = min(_SAVED, self._budget + self._hedge_share)
            gone: list[grpc.Channel] = self._unused(now) if now - self._swept > _IDLE_S / 4 else []
            CHANNELS.set(len(self._processes))
        for channel in gone:
            channel.close()
        return process, process.methods[method]

    def end(self, process: Process, method: str, size: int, seconds: float | None) -> None:
        """A call is over: answered after `seconds`, or (None) not answered."""
        with self._lock:
            process.under_way -= 1
            if seconds is not None:
                process.suspect_until = 0.0
                self._durations.setdefault((method, size.bit_length()), _Durations()).add(seconds)

    def overtaken(self, process: Process) -> None:
        """Another process answered first, though it was asked later."""
        with self._lock:
            process.suspect_until = time.monotonic() + _SUSPECT_S

    def hedge_after(self, method: str, size: int) -> float:
        """Seconds after which an answer to a call of `size` takes longer than 95 in 100 do."""
        with self._lock:
            known = self._durations.get((method, size.bit_length()))
            return max(_LEAST_HEDGE_S, known.p95 if known else _FIRST_HEDGE_S)

    def may_hedge(self, process: Process) -> bool:
        """Take one extra call out of the budget; beside a process that hangs it costs nothing."""
        with self._lock:
            if process.suspect_until > time.monotonic():
                return True
            if self._budget < 1:
                return False
            self._budget -= 1
            return True

    def close(self) -> None:
        with self._lock:
            processes, self._processes = self._processes, {}
        for process in processes.values():
            process.channel.close()

    def _unused(self, now: float) -> list[grpc.Channel]:
        """Forget the processes that are not called any more; their channels are the caller's to close."""
        self._swept = now
        idle = [known for known in self._processes.values() if not known.under_way and now - known.used > _IDLE_S]
        for process in idle:
            del self._processes[process.address]
        return [process.channel for process in idle]
