"""`openbook db status|watch`: databases, their replicas and what those hold, as a table or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openbook_cli.option_group import takes
from openbook_cli.security_options import DIALS, dial_of

if TYPE_CHECKING:
    from openbook_core.clients import AdminClient
    from openbook_proto.v1 import admin_pb2

Router = Annotated[str, typer.Option(help="Address of a router.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, on one line for each message.")]
_HOME_AND_CLEAR = "\x1b[H\x1b[J"


@takes(DIALS, "security")
def status(
    router: Router,
    database: Annotated[str, typer.Argument(help="Only this one.")] = "",
    watch: Annotated[bool, typer.Option(help="Go on and show it again whenever something changes.")] = False,
    as_json: AsJson = False,
    *,
    security: dict[str, Any],
) -> None:
    """Every replica with its snapshots, their states, bytes and epoch."""
    with _admin(router, security) as admin:
        for states in admin.watch(database) if watch else [admin.list(database)]:
            if as_json:
                print(json.dumps([record(state) for state in states]), flush=True)
            else:
                print((_HOME_AND_CLEAR if watch and sys.stdout.isatty() else "") + table(states), flush=True)


@takes(DIALS, "security")
def watch(
    router: Router,
    database: Annotated[str, typer.Argument(help="Only this one.")] = "",
    seconds: Annotated[float, typer.Option(help="End after so long; 0: never.")] = 0.0,
    as_json: AsJson = False,
    *,
    security: dict[str, Any],
) -> None:
    """A line for each change: epochs, candidates, what replicas load and drop."""
    from openbook_core.errors import DeadlineError

    before: Sequence[admin_pb2.DatabaseState] = []
    with _admin(router, security) as admin:
        try:
            for states in admin.watch(database, timeout_s=seconds or None):
                if as_json:
                    print(json.dumps([record(state) for state in states]), flush=True)
                else:
                    for line in changes(before, states):
                        print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
                before = states
        except DeadlineError:
            return


def record(state: admin_pb2.DatabaseState) -> dict[str, Any]:
    """A database's state as JSON."""
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(state, preserving_proto_field_name=True)
    return found


def table(states: Sequence[admin_pb2.DatabaseState]) -> str:
    """A block for each database: a line on it, then one for each snapshot of each replica."""
    return "\n\n".join("\n".join([*_head(state), *_rows(state)]) for state in states) or "no database is registered"


def changes(before: Sequence[admin_pb2.DatabaseState], after: Sequence[admin_pb2.DatabaseState]) -> Iterator[str]:
    """What is another in `after`, in words."""
    known = {state.database: dict(_facts(state)) for state in before}
    for state in after:
        old = known.get(state.database, {})
        new = dict(_facts(state))
        for name, value in new.items():
            if old.get(name) != value:
                yield f"{state.database}  {name}: {value}"
        for name in old.keys() - new.keys():
            yield f"{state.database}  {name}: gone"


def _facts(state: admin_pb2.DatabaseState) -> Iterator[tuple[str, str]]:
    why = f", {state.moved_by}{f': {state.reason}' if state.reason else ''}" if state.moved_by else ""
    yield "live", f"{_short(state.live)} at epoch {state.epoch}{why}"
    yield "candidate", _short(state.candidate)
    yield "previous", _short(state.previous)
    if state.first:
        yield "rolling", f"{', '.join(state.first)} first"
    for router in state.routers:
        yield f"router {router.name}", f"epoch {router.epoch}"
    for replica in state.replicas:
        yield f"replica {replica.name}", f"epoch {replica.epoch}"
        for held in replica.snapshots:
            shards = ",".join(map(str, held.shards))
            yield (
                f"replica {replica.name} {_short(held.snapshot)}",
                f"{held.state}, shards {shards}{f': {held.error}' if held.error else ''}",
            )


def _head(state: admin_pb2.DatabaseState) -> list[str]:
    candidate = f"   candidate {_short(state.candidate)}" if state.candidate else ""
    lines = [
        f"{state.database}   epoch {state.epoch}   live {_short(state.live)}   previous {_short(state.previous)}{candidate}"
    ]
    if state.first:
        lines.append(f"  rolling: {', '.join(state.first)} first")
    if state.reason:
        lines.append(f"  {state.moved_by}: {state.reason}")
    for router in state.routers:
        lines.append(f"  router   {router.name}  {router.address}  epoch {router.epoch}")
    return lines


def _rows(state: admin_pb2.DatabaseState) -> list[str]:
    from openbook_core.sizes import readable

    roles = {state.live: "live", state.previous: "previous", state.candidate: "candidate"}
    rows = [("replica", "epoch", "mapped", "limit", "snapshot", "role", "state", "shards", "bytes")]
    for replica in state.replicas:
        facts = (
            replica.name,
            str(replica.epoch),
            readable(replica.bytes),
            readable(replica.bytes_limit) if replica.bytes_limit else "-",
        )
        for held in replica.snapshots:
            shards = ",".join(map(str, held.shards))
            role = roles.get(held.snapshot, "held")
            rows.append((*facts, _short(held.snapshot), role, held.state, shards, readable(held.bytes)))
            facts = ("", "", "", "")
        if not replica.snapshots:
            rows.append((*facts, "-", "", "", "", ""))
    if len(rows) == 1:
        return ["  no replica reports"]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    devices = [
        f"  {replica.name} on {replica.device}: {readable(sum(held.device_bytes for held in replica.snapshots))} taken"
        + (
            f", {readable(replica.device_free)} of {readable(replica.device_total)} free"
            if replica.device_total
            else ""
        )
        for replica in state.replicas
        if replica.device
    ]
    failed = [
        f"  {replica.name} {_short(held.snapshot)} failed ({held.reason or 'no reason'}): {held.error}"
        for replica in state.replicas
        for held in replica.snapshots
        if held.error
    ]
    return lines + devices + failed


def _short(snapshot: str) -> str:
    return snapshot[:12] or "-"


def _admin(router: str, security: dict[str, Any]) -> AdminClient:
    from openbook_core.clients import AdminClient

    return AdminClient(router, dial_of(security))
