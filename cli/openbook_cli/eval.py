"""`openbook eval perplexity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def verbs() -> None:
    """Measure a finished model."""


@app.command()
def perplexity(
    model: Annotated[str, typer.Option(help="Folder of ours, or a name or folder that is converted.")],
    data: Annotated[Path, typer.Option(help=".tokens (WikiText), .jsonl (documents) or .txt; plain, .gz or .zst.")],
    database: Annotated[str | None, typer.Option(help="Database for ON and shuffled.")] = None,
    retriever: Annotated[str | None, typer.Option(help="Address of the router that serves it.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    limit_tokens: Annotated[int | None, typer.Option(help="Only the first tokens.")] = None,
    block: Annotated[int | None, typer.Option(help="Longest window; the model's positions or 1024.")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens from window to window; half a block.")] = None,
    words: Annotated[bool, typer.Option("--words", help="Word perplexity for text that is not WikiText.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Perplexity OFF, ON and with shuffled neighbours, with standard errors."""
    from openbook_cli.database import ProgressLine
    from openbook_cli.figures import write_figures
    from openbook_database.build.progress import Update
    from openbook_trainer.eval.perplexity import PerplexityConfig, evaluate

    settings: dict[str, Any] = {"model": model, "data": data, "database": database, "retriever": retriever}
    settings |= {"limit_tokens": limit_tokens, "block": block, "stride": stride, "words": words, "device": device}
    config = PerplexityConfig.parse(settings, source="openbook eval perplexity")
    line = ProgressLine()
    figures = evaluate(config, lambda stage, done, total: line(Update(stage, done, total, 0.0)))
    _print(figures)
    write_figures(figures, json_file)


def _print(figures: dict[str, Any]) -> None:
    names = [name for name in figures["off"] if not name.endswith("_standard_error")]
    print(f"\n{figures['tokens_scored']} tokens of {figures['data']}, windows of {figures['block']}, ", end="")
    print(f"standard errors {figures['standard_errors']}")
    print(f"{'':10}" + "".join(f"{name:>24}" for name in names))
    for side in ("off", "on", "shuffled"):
        if figures[side]:
            print(f"{side:10}" + "".join(f"{_cell(figures[side], name):>24}" for name in names))
    print(figures["note"])


def _cell(found: dict[str, Any], name: str) -> str:
    value, error = found[name], found[f"{name}_standard_error"]
    return "-" if value is None else f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
