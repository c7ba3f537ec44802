"""`openbook db neighbours`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openbook_cli.encoder_options import ENCODER
from openbook_cli.figures import write_figures
from openbook_cli.option_group import takes
from openbook_cli.progress_line import ProgressLine
from openbook_cli.query_encoder import DEFAULT, DtypeOption, Embedder, load_encoder
from openbook_core.errors import InputError

if TYPE_CHECKING:
    from openbook_database.neighbours.corpus import Corpus


@takes(ENCODER, "given")
def neighbours(
    database: Annotated[Path, typer.Option(help="Folder of the snapshot that is searched.")],
    out: Annotated[Path, typer.Option(help="Folder of the cache.")],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="A snapshot's folder; or file, folder or quoted glob as of `db build --input`, repeatable."),
    ] = None,
    source_list: Annotated[
        Path | None, typer.Option("--sources", help="YAML or JSON file that lists sources, as of `db build`.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Neighbours of each chunk.")] = 2,
    max_score: Annotated[
        float | None, typer.Option(help="A document with a chunk that scores more is a near-duplicate: left out.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field of a row that holds the text.")] = "text",
    id_field: Annotated[str, typer.Option(help="Field that holds the document's id.")] = "id",
    skip_bad_lines: Annotated[bool, typer.Option(help="Leave out lines without a document.")] = False,
    embedder: Embedder = DEFAULT,
    dtype: DtypeOption = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the result as JSON.")] = None,
    *,
    given: dict[str, Any],
) -> None:
    """Find the neighbours of every chunk of a corpus, for training, or go on with a run that was interrupted."""
    from openbook_database.manifest import MANIFEST_NAME
    from openbook_database.neighbours.corpus import SnapshotCorpus, TextCorpus
    from openbook_database.neighbours.find import find_neighbours
    from openbook_database.reader import FieldNames
    from openbook_database.snapshot import Snapshot
    from openbook_database.sources.listing import expand_sources, read_source_list, require_files

    if not corpus and source_list is None:
        raise InputError("no corpus was given: name one with --corpus or --sources", field="corpus")
    snapshot, given_paths = Snapshot.open(database), corpus or []
    single = given_paths[0] if len(given_paths) == 1 and source_list is None else None
    sources = None
    if single is None or not (single / MANIFEST_NAME).exists():
        sources = expand_sources([*given_paths, *(read_source_list(source_list) if source_list else ())])
        require_files(sources)

    def make(folder: Path) -> Corpus:
        if sources is None:
            assert single is not None
            own = single.resolve() == database.resolve()
            return SnapshotCorpus(snapshot if own else Snapshot.open(single))
        return TextCorpus(
            sources,
            folder,
            snapshot.tokenizer,
            snapshot.manifest.contract.chunk_length,
            fields=FieldNames(text=text_field, id=id_field),
            skip_bad_lines=skip_bad_lines,
        )

    encoder = load_encoder(embedder, dtype, given, "neighbours")
    try:
        found = find_neighbours(make, snapshot, encoder, out, k=k, max_score=max_score, progress=ProgressLine())
    except KeyboardInterrupt:
        print("\ninterrupted: finished work is kept; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    write_figures(vars(found), json_file)
    if not found.known_documents:
        print("note: no document of the corpus is in the snapshot under its id, so none was left out", file=sys.stderr)
    print(
        f"neighbours of {found.chunks} chunks of {found.documents} documents ({found.known_documents} of them in the "
        f"snapshot, {found.missing} neighbours missing) {'were there already' if found.reused else 'are'} in {found.path}"
    )
