"""The swap as a client runs it: prepare, wait until ready, activate, wait for every router."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from typing import Any

from openbook_core.clients import AdminClient
from openbook_core.errors import OpenbookError, PreconditionError, Reason, UnavailableError
from openbook_core.sizes import readable
from openbook_proto.v1 import admin_pb2

_POLL_S = 0.05


def swap_to(
    admin: AdminClient,
    database: str,
    snapshot: str,
    *,
    deadline_s: float = 300.0,
    terms: admin_pb2.SwapTerms | None = None,
    canary_s: float = 0.0,
    force: bool = False,
) -> dict[str, Any]:
    """Returns epoch and snapshot with `prepare_seconds` and `activate_seconds`.

    Run again after a crash between any two steps it goes on from where it was; a candidate that nobody goes on with is
    given up by the routers at the deadline in `terms`. Where a replica cannot load the snapshot, at the deadline and at
    Ctrl-C the swap is given up: the live snapshot is untouched, and another swap can be begun. With `canary_s` it is
    ready for so long, and answers its share of the requests, before it is made live. Raises UnavailableError where it was
    given up, with what the replicas say.
    """
    start = time.perf_counter()
    try:
        admin.prepare(database, snapshot, terms=terms or swap_terms(deadline_seconds=deadline_s), force=force)
        if canary_s:
            _wait_through_canary(admin, database, snapshot, start, deadline_s, canary_s)
        prepared, state = _activate_when_ready(admin, database, snapshot, start, deadline_s)
    except BaseException:
        with suppress(OpenbookError):  # the first error is the one to tell; what is left can be aborted or resumed
            admin.abort(database, snapshot)
        raise
    wait_for_routers(admin, database, state.epoch)
    done = time.perf_counter()
    return {
        "database": database,
        "live": state.live,
        "epoch": state.epoch,
        "prepare_seconds": round(prepared - start, 3),
        "activate_seconds": round(done - prepared, 3),
    }


def swap_terms(**terms: Any) -> admin_pb2.SwapTerms:
    """On which terms; what is not given takes the service's default."""
    return admin_pb2.SwapTerms(**terms)


def plan_lines(plan: admin_pb2.PlanReply) -> list[str]:
    """What loading would take, for people."""
    how = "fits" if plan.fits else "fits with --rolling" if plan.fits_rolling else "DOES NOT FIT"
    lines = [f"snapshot {plan.snapshot[:12]}: {how}"]
    for replica in plan.replicas:
        limit = readable(replica.bytes_limit) if replica.bytes_limit else "none"
        lines.append(
            f"  {replica.name}: maps {readable(replica.bytes)}, new {readable(replica.bytes_new)}, shared "
            f"{readable(replica.bytes_shared)}, limit {limit}{_device_words(replica)}: {replica.mode}"
        )
    return lines if plan.replicas else [*lines, "  no replica reports"]


def _device_words(replica: admin_pb2.ReplicaPlan) -> str:
    if not replica.device:
        return ""
    if replica.device_error:
        return f"; {replica.device_error}"
    free = (
        f"{readable(replica.device_free)} of {readable(replica.device_total)}" if replica.device_total else "not known"
    )
    return f"; {replica.device} new {readable(replica.device_new)}, free {free}"


def plan_record(plan: admin_pb2.PlanReply) -> dict[str, Any]:
    return {
        "snapshot": plan.snapshot,
        "fits": plan.fits,
        "fits_rolling": plan.fits_rolling,
        "replicas": [
            {
                "name": replica.name,
                "bytes": replica.bytes,
                "bytes_new": replica.bytes_new,
                "bytes_shared": replica.bytes_shared,
                "bytes_limit": replica.bytes_limit,
                "mode": replica.mode,
                "device": replica.device,
                "device_new": replica.device_new,
                "device_free": replica.device_free,
                "device_total": replica.device_total,
                "device_error": replica.device_error,
            }
            for replica in plan.replicas
        ],
    }


def _wait_through_canary(
    admin: AdminClient, database: str, snapshot: str, start: float, deadline_s: float, canary_s: float
) -> None:
    """Return when the snapshot was ready and unbroken for `canary_s` seconds; UnavailableError where it was given up."""
    ready_at: float | None = None
    while True:
        (state,) = admin.list(database)
        failed = _failures(state, snapshot)
        if failed or not state.candidate.startswith(snapshot):
            if state.live.startswith(snapshot):
                return
            why = "; ".join(failed) or "it was given up: a limit was broken, its time was over, or somebody ended it"
            raise UnavailableError(
                f"canary {snapshot[:12]} of {database!r} was not made live: {why}", reason=Reason.NOT_READY
            )
        now = time.perf_counter()
        if ready_at is None and _is_ready(state):
            ready_at = now
        if ready_at is not None and now - ready_at >= canary_s:
            return
        if now - start > deadline_s:
            raise UnavailableError(
                f"canary {snapshot[:12]} of {database!r} was not ready in time", reason=Reason.NOT_READY
            )
        time.sleep(_POLL_S)


def _is_ready(state: admin_pb2.DatabaseState) -> bool:
    shards = next(known.shards for known in state.snapshots if known.snapshot == state.candidate)
    ready = Counter(
        shard
        for replica in state.replicas
        for held in replica.snapshots
        if held.snapshot == state.candidate and held.state == "ready"
        for shard in held.shards
    )
    return all(ready[shard] >= max(1, state.terms.quorum) for shard in range(shards))


def _activate_when_ready(
    admin: AdminClient, database: str, snapshot: str, start: float, deadline_s: float
) -> tuple[float, admin_pb2.DatabaseState]:
    """When the last attempt began, and the state that it made. An attempt is audited: there is none before the replicas report
    that they are ready, or that one has failed."""
    while True:
        attempted = time.perf_counter()
        (current,) = admin.list(database)
        late = attempted - start > deadline_s
        ours = current.candidate.startswith(snapshot)
        if ours and not late and not _failures(current, snapshot) and not _is_ready(current):
            time.sleep(_POLL_S)
            continue
        try:
            return attempted, admin.activate(database, snapshot)
        except PreconditionError as error:
            (current,) = admin.list(database)
            failed = _failures(current, snapshot)
            if not current.candidate.startswith(snapshot):
                failed.append(
                    f"somebody else ended this swap (being prepared now: {current.candidate[:12] or 'nothing'})"
                )
            if failed or error.reason is not Reason.NOT_READY or late:
                raise UnavailableError(
                    f"snapshot {snapshot[:12]} of {database!r} was not made live: {'; '.join(failed) or error.message}",
                    reason=Reason.NOT_READY,
                ) from error
            time.sleep(_POLL_S)


def wait_for_routers(
    admin: AdminClient, database: str, epoch: int, *, deadline_s: float = 30.0
) -> admin_pb2.DatabaseState:
    """Return when every live router has reported `epoch`."""
    start = time.perf_counter()
    while True:
        (state,) = admin.list(database)
        behind = [router.name for router in state.routers if router.epoch < epoch]
        if not behind:
            return state
        if time.perf_counter() - start > deadline_s:
            raise UnavailableError(f"routers that have not moved to epoch {epoch}: {', '.join(behind)}")
        time.sleep(_POLL_S)


def _failures(state: admin_pb2.DatabaseState, snapshot: str) -> list[str]:
    return [
        f"{replica.name}: {held.error}"
        for replica in state.replicas
        for held in replica.snapshots
        if held.snapshot.startswith(snapshot) and held.state == "failed"
    ]
