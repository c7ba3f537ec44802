"""The settings of the prompt."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from openbook_core.config import FrozenConfig


class PromptSettings(FrozenConfig):
    """How passages enter the prompt; see `recipe`.

    `extracts`: so many of the passages' lines or sentences are shown, at most `extract_words` of each; 0 shows whole
    passages with the first `continuation_characters` of what follows them. `order`: "last-best" puts the best nearest
    the question. `instruction` follows the question. `lead_in` begins the answer to "Who is X?" with "X is".
    """

    extracts: NonNegativeInt = 1
    extract_words: PositiveInt = 40
    order: Literal["last-best", "first-best"] = "last-best"
    continuation_characters: NonNegativeInt = 300
    instruction: str = "Answer briefly, with words from the context."
    lead_in: bool = True
