"""`openbook db eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from openbook_cli.encoder_options import ENCODER
from openbook_cli.figures import write_figures
from openbook_cli.option_group import takes
from openbook_cli.progress_line import ProgressLine
from openbook_cli.query_encoder import DEFAULT, DtypeOption, Embedder, load_encoder


@takes(ENCODER, "given")
def evaluate(
    snapshot: Annotated[Path, typer.Argument(help="Folder of the snapshot.")],
    qa: Annotated[Path, typer.Option(help="Questions: the Factbook's, QED, SQuAD, or rows of question and answers.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions.")] = None,
    embedder: Embedder = DEFAULT,
    dtype: DtypeOption = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures as JSON.")] = None,
    *,
    given: dict[str, Any],
) -> None:
    """Is what answers given questions among the first 1, 2, 5 and 10 chunks? Shares with 95% intervals."""
    from openbook_database.questions.evaluate import FIRST
    from openbook_database.questions.evaluate import evaluate as measure
    from openbook_database.questions.read import read_questions
    from openbook_database.snapshot import Snapshot

    opened = Snapshot.open(snapshot)
    file = read_questions(qa, lambda external_id: opened.documents.number(external_id) is not None, limit)
    encoder = load_encoder(embedder, dtype, given, "eval")
    figures = {"kind": file.kind, **measure(opened, encoder, file.questions, progress=ProgressLine())}
    write_figures(figures, json_file)
    print(f"{figures['questions']} questions ({file.kind}) to snapshot {opened.id[:12]}; {figures['interval']}")
    if figures["documents_unknown"]:
        unknown, named = figures["documents_unknown"], figures["documents_named"]
        print(f"{unknown} of {named} documents that the questions name are not in the snapshot")
    print(f"{'':28}" + "".join(f"hit@{k:<20}" for k in FIRST).rstrip())
    for what in ("answer", "evidence", "document"):
        for part, row in figures.get(what, {}).items():
            label = f"{what} {part.replace('_', ' ')}" if what != "document" else what
            print(f"{label:28}" + "".join(_cell(row[f"hit@{k}"]) for k in FIRST).rstrip())


def _cell(share: dict[str, Any]) -> str:
    return f"{share['share']:.3f} [{share['low']:.3f}, {share['high']:.3f}]   "
