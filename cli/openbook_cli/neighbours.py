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

if TYPE_CHECKING:
    from openbook_database.neighbours.corpus import Corpus


@takes(ENCODER, "given")
def neighbours(
    corpus: Annotated[
        list[Path], typer.Option(help="JSON Lines file, plain, .gz or .zst, repeatable; or a snapshot's folder.")
    ],
    database: Annotated[Path, typer.Option(help="Folder of the snapshot that is searched.")],
    out: Annotated[Path, typer.Option(help="Folder of the cache.")],
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
    from openbook_database.reader import FieldNames, Source
    from openbook_database.snapshot import Snapshot

    snapshot = Snapshot.open(database)

    def make(folder: Path) -> Corpus:
        if len(corpus) == 1 and (corpus[0] / MANIFEST_NAME).exists():
            own = corpus[0].resolve() == database.resolve()
            return SnapshotCorpus(snapshot if own else Snapshot.open(corpus[0]))
        return TextCorpus(
            [Source(path=path) for path in corpus],
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
