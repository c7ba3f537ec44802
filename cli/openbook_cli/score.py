"""`openbook score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def score(
    file: Annotated[Path, typer.Argument(help="JSON Lines of id, prediction and answers; plain, .gz or .zst.")],
    answers: Annotated[
        Path | None, typer.Option(help="JSON Lines of id and answers, where FILE has id and prediction only.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
) -> None:
    """Exact match and F1 of a predictions file, as fractions with 95% intervals."""
    from openbook_cli.figures import write_figures
    from openbook_trainer.eval.predictions import read_predictions, score

    figures = score(read_predictions(file, answers))
    nvidia = figures["nvidia"]
    print(f"{figures['count']} predictions")
    for name, found in (("exact_match", figures), ("f1", figures), ("exact_match_cleaned", nvidia), ("f1", nvidia)):
        value, interval = found[name], found[f"{name}_interval"]
        label = f"{'nvidia ' if found is nvidia else ''}{name}"
        print(f"{label:27}" + ("-" if value is None else f"{value:.4f}  [{interval[0]:.4f}, {interval[1]:.4f}]"))
    write_figures(figures, json_file)
