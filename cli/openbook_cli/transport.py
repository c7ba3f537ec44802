"""`openbook db publish|pull`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openbook_cli.figures import write_figures
from openbook_cli.progress_line import ProgressLine

if TYPE_CHECKING:
    from openbook_database.transport.meter import Transfer

Url = Annotated[str, typer.Argument(help="A folder as fsspec names it: s3://BUCKET/NAME, gs://..., file:///...")]
Threads = Annotated[int, typer.Option(min=1, max=64, help="Files or blocks under way at once.")]
Figures = Annotated[Path | None, typer.Option("--json", help="File for the result as JSON.")]


def publish(snapshot: Path, url: Url, threads: Threads = 4, json_file: Figures = None) -> None:
    """Copy a snapshot to a URL, the manifest last, or go on with a copy that was interrupted."""
    from openbook_database.transport.publish import publish as send

    _run(lambda: send(snapshot, url, threads=threads, progress=ProgressLine()), f"published at {url}", json_file)


def pull(
    url: Url,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the snapshot.")],
    shard: Annotated[
        list[int] | None, typer.Option(help="Number of a shard whose files are wanted; repeatable.")
    ] = None,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="Snapshot, or folder of some, whose same files are linked; repeatable.")
    ] = None,
    expect: Annotated[str | None, typer.Option("--snapshot", help="The id that it must have.")] = None,
    threads: Threads = 4,
    json_file: Figures = None,
) -> None:
    """Copy a published snapshot into a folder, every byte checked, or go on with a copy that was interrupted."""
    from openbook_database.transport.pull import pull as get

    _run(
        lambda: get(
            url, folder, shards=shard, reuse=reuse or (), expected_id=expect, threads=threads, progress=ProgressLine()
        ),
        f"in {folder}",
        json_file,
    )


def _run(transfer: Callable[[], Transfer], where: str, json_file: Path | None) -> None:
    try:
        done = transfer()
    except KeyboardInterrupt:
        print("\ninterrupted: what was copied is kept; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    write_figures(vars(done), json_file)
    print(
        f"snapshot {done.snapshot_id} {'was there already' if done.reused else 'is'} {where}: {done.files} files, "
        f"{done.bytes} bytes ({done.sent_bytes} copied, {done.kept_bytes} there, {done.linked_bytes} linked)"
    )
