"""The swap as a client runs it: prepare, wait until ready, activate, wait for every router."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from google.protobuf.json_format import MessageToDict

from openbook_core.clients import AdminClient
from openbook_core.errors import OpenbookError, PreconditionError, Reason, UnavailableError
from openbook_proto.v1 import admin_pb2

_POLL_S = 0.05


def swap_to(admin: AdminClient, database: str, snapshot: str, *, deadline_s: float = 300.0) -> dict[str, Any]:
    """Returns epoch and snapshot with `prepare_seconds` and `activate_seconds`.

    Run again after a crash between any two steps it goes on from where it was. Where a replica cannot load the
    snapshot, at the deadline and at Ctrl-C the swap is given up: the live snapshot is untouched, and another swap can
    be begun. Raises UnavailableError then, with what the replicas say.
    """
    start = time.perf_counter()
    try:
        admin.prepare(database, snapshot)
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


def _activate_when_ready(
    admin: AdminClient, database: str, snapshot: str, start: float, deadline_s: float
) -> tuple[float, admin_pb2.DatabaseState]:
    """When the last attempt began, and the state that it made."""
    while True:
        attempted = time.perf_counter()
        try:
            return attempted, admin.activate(database, snapshot)
        except PreconditionError as error:
            failed = _failures(admin, database, snapshot)
            (current,) = admin.list(database)
            if not current.candidate.startswith(snapshot):
                failed.append(
                    f"somebody else ended this swap (being prepared now: {current.candidate[:12] or 'nothing'})"
                )
            if failed or error.reason is not Reason.NOT_READY or attempted - start > deadline_s:
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


def state_record(state: admin_pb2.DatabaseState) -> dict[str, Any]:
    record: dict[str, Any] = MessageToDict(state, preserving_proto_field_name=True)
    return record


def _failures(admin: AdminClient, database: str, snapshot: str) -> list[str]:
    (state,) = admin.list(database)
    return [
        f"{replica.name}: {held.error}"
        for replica in state.replicas
        for held in replica.snapshots
        if held.snapshot.startswith(snapshot) and held.state == "failed"
    ]
