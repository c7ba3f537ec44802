"""Options about an encoder, of each verb that loads one; unset ones take the word of the model's folder."""

from __future__ import annotations

from typing import Annotated

import typer

Pooling = Annotated[str | None, typer.Option(help="mean, cls or last; for a folder without modules.json.")]
Normalize = Annotated[bool | None, typer.Option("--normalize/--no-normalize", help="Vectors of length one.")]
QueryPrompt = Annotated[str | None, typer.Option(help="Text before each query.")]
PassagePrompt = Annotated[str | None, typer.Option(help="Text before each passage.")]
MaxTokens = Annotated[int | None, typer.Option(help="Where a text is cut, special tokens included.")]
