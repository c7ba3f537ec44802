"""`openbook db diff`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from openbook_database.diff import SnapshotDiff

_SIGNS = {"added": "+", "changed": "~", "removed": "-"}


def diff(
    first: Annotated[Path, typer.Argument(help="The earlier snapshot.")],
    second: Annotated[Path, typer.Argument(help="The later snapshot.")],
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Documents that the second snapshot has more (+), less (-) or changed (~), and how the contracts differ."""
    from openbook_database.diff import SnapshotDiff

    found = SnapshotDiff(first, second)
    if json_output:
        _print_json(found)
        return
    for field, ours, theirs in found.contract:
        print(f"contract: {field}: {json.dumps(ours)} -> {json.dumps(theirs)}")
    for change in found.changes():
        print(
            f"{_SIGNS[change.kind]} {change.external_id}" + (f"  ({', '.join(change.fields)})" if change.fields else "")
        )
    print(", ".join(f"{number} {kind}" for kind, number in found.counts.items()), file=sys.stderr)


def _print_json(found: SnapshotDiff) -> None:
    """Written as it comes, so that a long list needs no memory."""
    head = {"snapshots": found.snapshots, "databases": found.databases}
    contract = [{"field": field, "first": ours, "second": theirs} for field, ours, theirs in found.contract]
    print(json.dumps({**head, "contract": contract}, ensure_ascii=False)[:-1] + ', "documents": [', end="")
    for number, change in enumerate(found.changes()):
        record = {"id": change.external_id, "change": change.kind, "fields": change.fields}
        print((",\n " if number else "\n ") + json.dumps(record, ensure_ascii=False), end="")
    print("], " + json.dumps(dict(found.counts))[1:])
