"""The encoder of verbs that search a snapshot in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from openbook_core.weights import DEFAULT_EMBEDDER

if TYPE_CHECKING:
    from openbook_embedder.engine import EncoderEngine

Embedder = Annotated[str, typer.Option(help="Folder or name of the encoder; it must be the snapshot's.")]
DtypeOption = Annotated[str, typer.Option(help="Compute type of the encoder: auto, float32 or bfloat16.")]
DEFAULT = DEFAULT_EMBEDDER


def load_encoder(embedder: str, dtype: str, given: dict[str, Any], verb: str) -> EncoderEngine:
    """Raises the errors of `EncoderEngine.load`; `given` are the options of `encoder_options`."""
    from openbook_embedder.config import EncoderOptions
    from openbook_embedder.engine import EncoderEngine

    options = EncoderOptions.parse(given, source=f"openbook db {verb}")
    return EncoderEngine.load(embedder, dtype=dtype, options=options)  # type: ignore[arg-type]
