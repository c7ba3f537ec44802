"""`openbook db erase`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from openbook_cli.figures import write_figures
from openbook_cli.progress_line import ProgressLine


def erase(
    snapshot: Annotated[Path, typer.Argument(help="The snapshot, which stays as it is.")],
    out: Annotated[Path, typer.Option(help="Folder of the new snapshot.")],
    ids: Annotated[
        Path | None, typer.Option(help="File with the ids of documents to leave out, one on a line.")
    ] = None,
    id_: Annotated[list[str] | None, typer.Option("--id", help="Id of a document to leave out; repeatable.")] = None,
    ignore_missing: Annotated[bool, typer.Option(help="Pass over ids that the snapshot has not.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the result as JSON.")] = None,
) -> None:
    """Make a snapshot without some documents, from the snapshot alone."""
    from openbook_core.errors import InputError
    from openbook_database.build.erase import erase_documents

    wanted = list(id_ or ())
    if ids is not None:
        try:
            wanted += [line for line in ids.read_text(encoding="utf-8").split("\n") if line]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--ids {ids} cannot be read: {error}", field="ids") from error
    if not wanted:
        raise InputError("no id was given: name documents with --ids FILE or --id ID", field="ids")
    result = erase_documents(snapshot, wanted, out, ignore_missing=ignore_missing, progress=ProgressLine())
    write_figures({**vars(result), "path": str(result.path)}, json_file)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if result.missing:
        print(f"passed over: {result.missing} ids that the snapshot has not", file=sys.stderr)
    print(
        f"snapshot {result.snapshot_id} {'was there already' if result.reused else 'made'}: {result.erased} documents "
        f"erased, {result.documents} left in {result.chunks} chunks, {result.shared_shards} of {result.shards} shards "
        f"shared, {result.path}"
    )
