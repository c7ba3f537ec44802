"""Asks one process for each shard, all at once, and another one where the first cannot be reached or is late.

Shards that one process serves are asked in one call. The first process to answer counts, the others' calls are
cancelled; so are all of a request that fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from threading import Condition
from typing import Any, Generic, TypeVar

import grpc

from openbook_core.errors import OpenbookError, OverloadedError, Reason
from openbook_core.rpc.status import error_from_rpc
from openbook_retriever.metrics import HEDGES, HEDGES_WON, REPLICA_RETRIES, SHARDS_MISSING
from openbook_retriever.replicas import Process, Replicas

# The last two: it is this router's token that a shard refuses, not its caller's.
_TRY_ANOTHER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)

Reply = TypeVar("Reply")
Shards = tuple[int, ...]
Serving = Callable[[int], Sequence[str]]


@dataclass(frozen=True)
class Question:
    """`method` about `shards`; `bytes_for` gives the request to the process that serves some of them, all of them where
    they may be asked `together`. `size`: queries, or ids."""

    method: str
    shards: Sequence[int]
    bytes_for: Callable[[Shards], bytes]
    size: int
    together: bool = True


@dataclass
class Answers(Generic[Reply]):
    """`parts` by the shards that they are from. `missing`: why a shard gave no answer. `not_loaded`: those of them whose
    replicas do not hold the snapshot (any more). `overloaded`: those that a replica refused for overload, with the
    seconds until it may be asked again, where it said so."""

    parts: dict[Shards, Reply] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    not_loaded: set[int] = field(default_factory=set)
    overloaded: dict[int, float | None] = field(default_factory=dict)


@dataclass(eq=False)
class _Call:
    """Shards asked at one process. `hedge_of`: the call that it was sent beside."""

    shards: Shards
    process: Process
    future: Any
    begun: float
    hedge_at: float
    hedge_of: _Call | None = None
    over: bool = False


def ask(
    replicas: Replicas,
    question: Question,
    serving: Serving,
    again: Callable[[], Serving],
    timeout_s: float,
) -> Answers[Any]:
    """Ask for every shard at one of the addresses that `serving` gives for it.

    Where none answers, `again` is called once for newer addresses. Raises OpenbookError where a shard refuses the
    request itself, or where `timeout_s` passes.
    """
    return _FanOut(replicas, question, serving, again, time.monotonic() + timeout_s).run()


class _FanOut:
    """One question on its way."""

    def __init__(
        self, replicas: Replicas, question: Question, serving: Serving, again: Callable[[], Serving], deadline: float
    ) -> None:
        self._replicas, self._question, self._deadline = replicas, question, deadline
        self._serving, self._again, self._renewed = serving, again, False
        self._answers: Answers[Any] = Answers()
        self._tried: dict[int, set[str]] = {shard: set() for shard in question.shards}
        self._calls: list[_Call] = []
        self._changed = Condition()

    def run(self) -> Answers[Any]:
        try:
            self._start_all(self._question.shards)
            while any(not call.over for call in self._calls):
                self._wait()
                self._collect()
                self._hedge()
        finally:
            for call in self._calls:
                self._drop(call)
        missing = [shard for shard in self._question.shards if not self._answered(shard)]
        for shard in missing:
            self._answers.missing.setdefault(shard, "no replica reports it ready")
        SHARDS_MISSING.inc(len(missing))
        return self._answers

    def _start_all(self, shards: Collection[int]) -> None:
        """Begin calls for these shards; where one has no address left, newer ones are looked for once."""
        groups = self._group(shards)
        if not self._renewed and sum(map(len, groups.values())) < len(shards):
            self._renewed, self._serving = True, self._again()
            groups = self._group(shards)
        alone = len(groups) == 1 and not any(not call.over for call in self._calls)
        for address, group in groups.items():
            REPLICA_RETRIES.inc(sum(bool(self._tried[shard]) for shard in group))
            others = all(self._untried(shard, address) for shard in group)
            parts = [tuple(group)] if self._question.together else [(shard,) for shard in group]
            for part in parts:
                self._start(address, part, block=alone and len(parts) == 1 and not others)

    def _group(self, shards: Collection[int]) -> dict[str, list[int]]:
        """Which process is asked for which of the shards: each process that is chosen for all that it serves."""
        left = {shard: self._untried(shard) for shard in shards}
        groups: dict[str, list[int]] = {}
        while left:
            shard, addresses = next(iter(left.items()))
            if not addresses:
                del left[shard]
                continue
            address = self._replicas.choose(addresses)
            groups[address] = [each for each, served in left.items() if address in served]
            for each in groups[address]:
                del left[each]
        return groups

    def _untried(self, shard: int, besides: str = "") -> list[str]:
        tried = self._tried[shard]
        return [address for address in self._serving(shard) if address not in tried and address != besides]

    def _start(self, address: str, shards: Shards, *, block: bool = False, hedge_of: _Call | None = None) -> None:
        """Call `address`. A call that has no company and no substitute is waited for here: it needs no other thread."""
        for shard in shards:
            self._tried[shard].add(address)
        data = self._question.bytes_for(shards)
        process, method = self._replicas.begin(address, self._question.method)
        now = time.monotonic()
        left_s = max(0.0, self._deadline - now)
        wait_s = self._replicas.hedge_after(self._question.method, self._question.size)
        call = _Call(shards, process, None, now, now + wait_s, hedge_of)
        self._calls.append(call)
        if block:
            try:
                call.future = _Done(method(data, timeout=left_s))
            except grpc.RpcError as failure:
                call.future = _Done(failure)
            return
        call.future = method.future(data, timeout=left_s)
        call.future.add_done_callback(self._wake)

    def _wake(self, _: Any) -> None:
        with self._changed:
            self._changed.notify()

    def _wait(self) -> None:
        """Until a call ends or is late."""
        with self._changed:
            waiting = [call for call in self._calls if not call.over]
            if any(call.future.done() for call in waiting):
                return
            due = min(call.hedge_at for call in waiting)
            self._changed.wait(max(0.0, min(due, self._deadline + 1.0) - time.monotonic()))

    def _collect(self) -> None:
        for call in [call for call in self._calls if not call.over and call.future.done()]:
            if call.over:
                continue
            try:
                reply = call.future.result()
            except grpc.FutureCancelledError:
                self._failed(call, "the call was cancelled")
            except grpc.RpcError as failure:
                self._refused(call, failure)
            else:
                self._take(call, reply)

    def _take(self, call: _Call, reply: Any) -> None:
        self._end(call, answered=True)
        mine = set(call.shards)
        self._answers.parts = {shards: part for shards, part in self._answers.parts.items() if not mine & set(shards)}
        self._answers.parts[call.shards] = reply
        for shard in call.shards:
            self._answers.missing.pop(shard, None)
            self._answers.not_loaded.discard(shard)
            self._answers.overloaded.pop(shard, None)
        for other in self._calls:
            if not other.over and all(self._answered(shard) for shard in other.shards):
                if call.hedge_of is other:
                    HEDGES_WON.inc()
                    self._replicas.overtaken(other.process)
                self._drop(other)

    def _refused(self, call: _Call, failure: grpc.RpcError) -> None:
        error = error_from_rpc(failure, call.process.address)
        if failure.code() in _TRY_ANOTHER:
            if isinstance(error, OverloadedError):
                self._answers.overloaded |= dict.fromkeys(call.shards, error.retry_after_s)
        elif error.reason is Reason.SNAPSHOT_NOT_LOADED:
            self._answers.not_loaded.update(call.shards)
        else:
            self._end(call)
            raise _with_shards(error, call.shards) from failure
        self._failed(call, error.message)

    def _failed(self, call: _Call, why: str) -> None:
        """Ask another process, unless one is being asked already."""
        self._end(call)
        self._answers.missing |= dict.fromkeys(call.shards, why)
        asked = {shard for other in self._calls if not other.over for shard in other.shards}
        left = [shard for shard in call.shards if shard not in asked and not self._answered(shard)]
        if left:
            self._start_all(left)

    def _hedge(self) -> None:
        """Send late calls a second time, each once, to other processes that serve all of their shards."""
        now = time.monotonic()
        for call in [call for call in self._calls if not call.over and call.hedge_at <= now]:
            call.hedge_at = now + self._replicas.hedge_after(self._question.method, self._question.size)
            groups = self._group(call.shards)
            beside = any(other.hedge_of is call for other in self._calls)
            if beside or sum(map(len, groups.values())) < len(call.shards):
                call.hedge_at = self._deadline + 1.0
            elif self._replicas.may_hedge(call.process):
                HEDGES.inc()
                for address, group in groups.items():
                    self._start(address, tuple(group), hedge_of=call)

    def _answered(self, shard: int) -> bool:
        return any(shard in shards for shards in self._answers.parts)

    def _end(self, call: _Call, *, answered: bool = False) -> None:
        call.over = True
        seconds = time.monotonic() - call.begun if answered else None
        self._replicas.end(call.process, self._question.method, self._question.size, seconds)

    def _drop(self, call: _Call) -> None:
        if not call.over:
            self._end(call)
            call.future.cancel()


class _Done:
    """A call that is over, as a future."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        if isinstance(self._outcome, grpc.RpcError):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        """Nothing is left to cancel."""


def _with_shards(error: OpenbookError, shards: Shards) -> OpenbookError:
    error.metadata["shard"] = ",".join(map(str, shards))
    return error
