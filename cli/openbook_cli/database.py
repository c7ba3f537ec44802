"""`openbook db build|verify|id|inspect|plan|publish|pull|neighbours|eval|register|swap|rollback|abort|list`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openbook_cli import book_eval, build, diff, erase, gc, inspect, neighbours, plan, transport
from openbook_cli.option_group import takes
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
Router = Annotated[str, typer.Option(help="Address of a router.")]


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
def swap(
    database: str,
    snapshot: str,
    router: Router,
    deadline: Annotated[float, typer.Option(help="Seconds for loading.")] = 300.0,
    *,
    security: dict[str, Any],
) -> None:
    """Load a snapshot beside the live one, make it live, and return when every router has moved."""
    from openbook_cli.swap import swap_to

    with _admin(router, security) as admin:
        print(json.dumps(swap_to(admin, database, snapshot, deadline_s=deadline)))


@app.command()
@takes(DIALS, "security")
def rollback(database: str, router: Router, *, security: dict[str, Any]) -> None:
    """Make the previous snapshot live again, at once."""
    from openbook_cli.swap import state_record, wait_for_routers

    with _admin(router, security) as admin:
        start = time.perf_counter()
        state = wait_for_routers(admin, database, admin.rollback(database).epoch)
        print(json.dumps({**state_record(state), "seconds": round(time.perf_counter() - start, 3)}))


@app.command()
@takes(DIALS, "security")
def abort(database: str, router: Router, *, security: dict[str, Any]) -> None:
    """Give up the swap that is being prepared; the live snapshot is untouched."""
    from openbook_cli.swap import state_record

    with _admin(router, security) as admin:
        print(json.dumps(state_record(admin.abort(database))))


@app.command("list")
@takes(DIALS, "security")
def list_databases(router: Router, database: str = "", *, security: dict[str, Any]) -> None:
    """Databases, snapshots, replicas and routers, as JSON."""
    from openbook_cli.swap import state_record

    with _admin(router, security) as admin:
        print(json.dumps([state_record(state) for state in admin.list(database)], indent=1))
