"""`openbook demo`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    questions: Annotated[int, typer.Option(min=1, help="Questions to ask each time.")] = 12,
    documents: Annotated[int | None, typer.Option(min=1, help="Only the first documents of each edition.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    keep: Annotated[bool, typer.Option(help="Leave the services running.")] = False,
    train_seconds: Annotated[int, typer.Option(min=0, help="How long to train the tiny RETRO; 0: not at all.")] = 60,
    editions: Annotated[Path, typer.Option(help="Folder of the editions.")] = Path("examples/factbook"),
    workdir: Annotated[Path, typer.Option(help="Snapshots, registry and logs.")] = Path(".openbook/demo"),
    train_config: Annotated[Path, typer.Option(help="Configuration of the tiny RETRO.")] = Path(
        "examples/train/tiny.yaml"
    ),
    adapter: Annotated[Path, typer.Option(help="LoRA adapter of the served model.")] = Path(
        "examples/adapters/factbook"
    ),
    no_adapter: Annotated[bool, typer.Option("--no-adapter", help="Serve the model without an adapter.")] = False,
    cross_attention_model: Annotated[
        Path, typer.Option(help="Model of the second column, which reads passages through cross attention alone.")
    ] = Path("examples/factbook/model"),
    no_cross_attention: Annotated[bool, typer.Option("--no-cross-attention", help="No second column.")] = False,
    registry: Annotated[str, typer.Option(help="directory, redis (a server of its own), or redis://HOST:PORT.")] = (
        "directory"
    ),
) -> None:
    """Two editions of a book, a live swap under load, and a tiny RETRO trained against the live retriever."""
    from openbook_cli.demo.run import DemoOptions, run

    options = DemoOptions(
        questions,
        documents,
        json_,
        keep,
        train_seconds,
        editions,
        workdir,
        train_config,
        registry,
        None if no_adapter else adapter,
        None if no_cross_attention else cross_attention_model,
    )
    raise typer.Exit(run(options))
