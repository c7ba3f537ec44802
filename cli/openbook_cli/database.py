"""`openbook db`: builds, checks, swaps and shows databases."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openbook_cli import book_eval, build, diff, erase, gc, inspect, neighbours, plan, status, transport
from openbook_cli.option_group import Options, takes
from openbook_cli.security_options import DIALS, dial_of

if TYPE_CHECKING:
    from openbook_core.clients import AdminClient

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command("build")(build.build)
app.command("diff")(diff.diff)
app.command("erase")(erase.erase)
app.command("gc")(gc.gc)
app.command("publish")(transport.publish)
app.command("pull")(transport.pull)
app.command("neighbours")(neighbours.neighbours)
app.command("eval")(book_eval.evaluate)
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
app.command("status")(status.status)
app.command("watch")(status.watch)
Router = Annotated[str, typer.Option(help="Address of a router.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON on one line, as it always is.")]
LIMITS: Options = {
    "max_error_share": (float, "Most failed requests of the new snapshot, from 0 to 1."),
    "max_empty_share": (float, "Most queries without a neighbour, from 0 to 1."),
    "max_p99_ms": (float, "Largest 99th percentile of the latency."),
}


def _admin(router: str, security: dict[str, Any]) -> AdminClient:
    from openbook_core.clients import AdminClient

    return AdminClient(router, dial_of(security))


@app.command()
def verify(
    snapshot: Path,
    expect: Annotated[str | None, typer.Option("--snapshot", help="The id that it must have.")] = None,
) -> None:
    """Check every byte, every row and the golden queries."""
    from openbook_database.verify import verify as check

    done = check(snapshot, expected_id=expect)
    print(
        f"snapshot {done.snapshot_id} is whole: {done.files} files, {done.chunks} chunks, {done.golden_queries} golden"
    )


@app.command("id")
def snapshot_id(snapshot: Path) -> None:
    """The snapshot's id: the digest of its manifest."""
    from openbook_database.manifest import Manifest

    print(Manifest.read(snapshot).snapshot_id)


@app.command()
@takes(DIALS, "security")
def register(database: str, snapshot: Path, router: Router, *, security: dict[str, Any]) -> None:
    """Make a snapshot known to the registry."""
    with _admin(router, security) as admin:
        print(admin.register(database, str(snapshot.absolute())).snapshot)


@app.command()
@takes(DIALS, "security")
@takes(LIMITS, "limits")
def swap(
    database: str,
    snapshot: str,
    router: Router,
    deadline: Annotated[float, typer.Option(help="Seconds for loading; then routers give it up.")] = 300.0,
    quorum: Annotated[int, typer.Option(help="Ready replicas that each shard must have.")] = 1,
    canary_percent: Annotated[float, typer.Option(help="Share of unpinned requests that try it first.")] = 0.0,
    canary_seconds: Annotated[float, typer.Option(help="For so long.")] = 60.0,
    standby_seconds: Annotated[
        float, typer.Option(help="Retire the old one so long after; 0: at the next swap.")
    ] = 0.0,
    watch_seconds: Annotated[float, typer.Option(help="Undo the swap where a limit is broken within.")] = 60.0,
    rolling: Annotated[
        bool, typer.Option(help="No replica holds both: half of them change over first, the others after the standby.")
    ] = False,
    force: Annotated[
        bool, typer.Option(help="Also where the plan says that it does not fit, or the router can make none.")
    ] = False,
    plan_only: Annotated[bool, typer.Option("--plan", help="Show what it would take of memory, and stop.")] = False,
    as_json: AsJson = False,
    *,
    limits: dict[str, Any],
    security: dict[str, Any],
) -> None:
    """Load a snapshot beside the live one, make it live, and return when every router has moved.

    The plan of memory goes to standard error first; standard output holds one line of JSON.
    """
    from openbook_cli.swap import plan_lines, plan_record, swap_terms, swap_to
    from openbook_core.errors import CorruptError

    with _admin(router, security) as admin:
        try:
            planned = admin.plan(database, snapshot)
            print("\n".join(plan_lines(planned)), file=sys.stderr)
        except CorruptError as error:
            if plan_only or not force:
                raise
            print(error, file=sys.stderr)
        if plan_only:
            print(json.dumps(plan_record(planned)))
            raise typer.Exit(0 if planned.fits or (rolling and planned.fits_rolling) else 1)
        waiting_s = canary_seconds if canary_percent else 0.0
        terms = swap_terms(
            deadline_seconds=deadline + waiting_s,
            quorum=quorum,
            canary_percent=canary_percent,
            standby_seconds=standby_seconds,
            watch_seconds=watch_seconds if limits else 0.0,
            rolling=rolling,
            **limits,
        )
        print(
            json.dumps(
                swap_to(admin, database, snapshot, deadline_s=deadline, terms=terms, canary_s=waiting_s, force=force)
            )
        )


@app.command()
@takes(DIALS, "security")
def rollback(database: str, router: Router, as_json: AsJson = False, *, security: dict[str, Any]) -> None:
    """Make the previous snapshot live again, at once."""
    from openbook_cli.swap import wait_for_routers

    with _admin(router, security) as admin:
        start = time.perf_counter()
        state = wait_for_routers(admin, database, admin.rollback(database).epoch)
        print(json.dumps({**status.record(state), "seconds": round(time.perf_counter() - start, 3)}))


@app.command()
@takes(DIALS, "security")
def abort(database: str, router: Router, as_json: AsJson = False, *, security: dict[str, Any]) -> None:
    """Give up the swap that is being prepared; the live snapshot is untouched."""
    with _admin(router, security) as admin:
        print(json.dumps(status.record(admin.abort(database))))


@app.command()
@takes(DIALS, "security")
def retire(database: str, router: Router, as_json: AsJson = False, *, security: dict[str, Any]) -> None:
    """Keep the previous snapshot no longer: its memory is freed, and there is nothing to roll back to."""
    with _admin(router, security) as admin:
        print(json.dumps(status.record(admin.retire(database))))


@app.command("list")
@takes(DIALS, "security")
def list_databases(router: Router, database: str = "", as_json: AsJson = False, *, security: dict[str, Any]) -> None:
    """Databases, snapshots, replicas and routers, as JSON."""
    with _admin(router, security) as admin:
        print(json.dumps([status.record(state) for state in admin.list(database)], indent=1))
