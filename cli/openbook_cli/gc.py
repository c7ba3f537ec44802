"""`openbook db gc`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from openbook_cli.figures import write_figures


def gc(
    registry: Annotated[
        list[str], typer.Option(help="Folder or redis:// address of a registry; repeatable: name all.")
    ],
    under: Annotated[Path, typer.Option(help="Folder to look in, with all folders in it.")],
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what is found; without it nothing is changed.")
    ] = False,
    older_than: Annotated[
        float, typer.Option(help="Hours; what is younger stays: it may be about to be registered.", min=0)
    ] = 24.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for what was found, as JSON.")] = None,
) -> None:
    """Find snapshots that no registry names and what dead builds and pulls left, and delete them if asked."""
    from openbook_database.gc import collect
    from openbook_database.registry import open_registry

    found = collect([open_registry(url) for url in registry], under, delete=delete, older_than=3600 * older_than)
    for each in found.garbage:
        what = f"snapshot {each.snapshot[:12]}" if each.snapshot is not None else f"{each.kind} of a build or pull"
        state = "deleted" if each.path in found.deleted else "can go" if not delete else "stays"
        print(f"{state}: {each.path} ({what}, {each.bytes} bytes)")
    for path, reason in found.kept:
        print(f"kept: {path}: {reason}", file=sys.stderr)
    number = len(found.deleted) if delete else len(found.garbage)
    print(
        f"{number} folders {'deleted' if delete else 'would be deleted (--delete does it)'}, "
        f"{found.freed} bytes {'freed' if delete else 'would be freed'}"
    )
    write_figures(
        {
            "deleted": [str(path) for path in found.deleted],
            "kept": {str(path): reason for path, reason in found.kept},
            "garbage": [{**vars(each), "path": str(each.path)} for each in found.garbage],
            "freed": found.freed,
        },
        json_file,
    )
