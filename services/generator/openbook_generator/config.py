"""The generator's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from openbook_core.security.options import DialingServerOptions
from openbook_core.weights import DEFAULT_MODEL
from openbook_prompt.settings import DEFAULT_PASSAGES, PromptSettings


class GeneratorConfig(DialingServerOptions):
    """`port` 0 picks a free one. `model` is a folder of ours, or a name that is converted into the cache at start.

    `adapter` is a folder that `openbook train` (task: sft) wrote: it is added to the model's weights at start, and the
    prompt's settings that it was trained with replace `prompt`, save for those that `prompt` sets.
    `k` passages are read per question, 0 to `max_k`. `max_context` bounds prompt and reply together, in tokens.
    At most `slots` sequences decode at once and `max_queue` more wait; further ones are refused with 429.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    model: str = DEFAULT_MODEL
    adapter: Path | None = None
    retriever: str = "127.0.0.1:7000"
    database: str = "default"
    k: int = Field(default=DEFAULT_PASSAGES, ge=0)
    max_k: PositiveInt = 32
    slots: PositiveInt = 8
    max_context: PositiveInt = 2048
    default_max_tokens: PositiveInt = 256
    max_queue: NonNegativeInt = 64
    retry_after_s: PositiveFloat = 1.0
    search_timeout_s: PositiveFloat = 30.0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    prompt: PromptSettings = PromptSettings()
