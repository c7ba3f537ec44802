"""Asks one replica of each shard, all at once, and another one where the first cannot be reached."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic, TypeVar

import grpc

from openbook_core.errors import OpenbookError, OverloadedError, Reason
from openbook_core.rpc.channel import open_channel
from openbook_core.rpc.status import error_from_rpc
from openbook_core.security.dial import Dial
from openbook_proto.v1 import retriever_pb2_grpc
from openbook_retriever.metrics import REPLICA_RETRIES, SHARDS_MISSING

# The last two: it is this router's token that a shard refuses, not its caller's.
_TRY_ANOTHER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)

Reply = TypeVar("Reply")


@dataclass
class Answers(Generic[Reply]):
    """`parts` by shard. `missing`: why a shard gave no answer. `not_loaded`: those of them whose replicas do not hold
    the snapshot (any more). `overloaded`: those that a replica refused for overload, with the seconds until it may be
    asked again, where it said so."""

    parts: dict[int, Reply] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    not_loaded: set[int] = field(default_factory=set)
    overloaded: dict[int, float | None] = field(default_factory=dict)


class Replicas:
    """Channels to shard processes, opened once for each address; safe to use from several threads."""

    def __init__(self, dial: Dial | None = None) -> None:
        self._dial = dial
        self._lock = Lock()
        self._turns: dict[tuple[str, int], int] = {}
        self._stubs: dict[str, Any] = {}

    def ask(
        self,
        method: str,
        requests: Mapping[int, Any],
        serving: Callable[[int], Sequence[str]],
        again: Callable[[], Callable[[int], Sequence[str]]],
        timeout_s: float,
    ) -> Answers[Any]:
        """Send `requests` (by shard) as `method` to one of the addresses that `serving` gives for each shard.

        Where none answers, `again` is called once for newer addresses. Raises OpenbookError where a shard refuses the
        request itself, or where `timeout_s` passes.
        """
        deadline = time.monotonic() + timeout_s
        answers: Answers[Any] = Answers()
        tried: dict[int, set[str]] = {shard: set() for shard in requests}
        open_shards = list(requests)
        refreshed = False
        while open_shards:
            calls = {}
            for shard in open_shards:
                address = self._choose(requests[shard].database, shard, serving(shard), tried[shard])
                if address:
                    if tried[shard]:
                        REPLICA_RETRIES.inc()
                    tried[shard].add(address)
                    calls[shard] = (address, self._start(address, method, requests[shard], deadline))
            for shard, (address, call) in calls.items():
                self._collect(shard, address, call, answers)
            open_shards = [shard for shard in requests if shard not in answers.parts]
            if open_shards and not any(shard in calls for shard in open_shards):
                if refreshed:
                    break
                refreshed, serving = True, again()
        for shard in open_shards:
            answers.missing.setdefault(shard, "no replica reports it ready")
        SHARDS_MISSING.inc(len(open_shards))
        return answers

    def _choose(self, database: str, shard: int, addresses: Sequence[str], tried: set[str]) -> str:
        """The next in turn. Each shard counts its own, or a request's other shards would decide whose turn it is."""
        untried = [address for address in addresses if address not in tried]
        if not untried:
            return ""
        with self._lock:
            turn = self._turns[database, shard] = self._turns.get((database, shard), -1) + 1
        return untried[turn % len(untried)]

    def _start(self, address: str, method: str, request: Any, deadline: float) -> Any:
        with self._lock:
            stub = self._stubs.get(address)
            if stub is None:
                stub = self._stubs[address] = retriever_pb2_grpc.RetrieverStub(open_channel(address, self._dial))
        return getattr(stub, method).future(request, timeout=max(0.0, deadline - time.monotonic()))

    def _collect(self, shard: int, address: str, call: Any, answers: Answers[Any]) -> None:
        try:
            answers.parts[shard] = call.result()
        except grpc.FutureCancelledError:
            answers.missing[shard] = f"{address}: the call was cancelled"
        except grpc.RpcError as failure:
            error = error_from_rpc(failure, address)
            if failure.code() in _TRY_ANOTHER:
                answers.missing[shard] = error.message
                if isinstance(error, OverloadedError):
                    answers.overloaded[shard] = error.retry_after_s
            elif error.reason is Reason.SNAPSHOT_NOT_LOADED:
                answers.missing[shard] = error.message
                answers.not_loaded.add(shard)
            else:
                raise _with_shard(error, shard) from failure
        else:
            answers.missing.pop(shard, None)
            answers.not_loaded.discard(shard)
            answers.overloaded.pop(shard, None)


def _with_shard(error: OpenbookError, shard: int) -> OpenbookError:
    error.metadata["shard"] = str(shard)
    return error
