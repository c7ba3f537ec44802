"""`openbook token new`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def verbs() -> None:
    """Tokens that services ask for."""


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Whose it is; goes into the audit, never the token.")],
    file: Annotated[Path, typer.Option(help="File of the services' --tokens; the line is appended.")],
    scopes: Annotated[str, typer.Option(help="read, admin, or both with a comma between.")] = "read",
    days: Annotated[float | None, typer.Option(min=0, help="How long it counts; by default for good.")] = None,
) -> None:
    """Make a token: printed once, kept as a digest only."""
    from openbook_core.security.tokens import add_token

    print(add_token(file, name, [each.strip() for each in scopes.split(",")], days))
