"""Options about an encoder, of each verb that loads one; those that are not given take the word of the model's folder."""

from __future__ import annotations

from typing import Annotated

import typer

from openbook_cli.option_group import Options

_POOLING = "mean, cls or last; for a folder without modules.json."
Pooling = Annotated[str | None, typer.Option(help=_POOLING)]
ENCODER: Options = {
    "pooling": (str, _POOLING),
    "normalize": (bool, "Vectors of length one."),
    "query_prompt": (str, "Text before each query."),
    "passage_prompt": (str, "Text before each passage."),
    "max_tokens": (int, "Where a text is cut, special tokens included."),
}
