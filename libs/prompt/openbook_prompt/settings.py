"""The settings of the prompt."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import NonNegativeInt, PositiveInt

from openbook_core.config import FrozenConfig
from openbook_core.errors import InputError

# Passages that are found for a question, in serving, tuning and evaluation alike.
DEFAULT_PASSAGES = 12


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

    def over(self, stored: dict[str, Any] | None, source: str) -> Self:
        """These settings where they are set, below them the `stored` ones of an adapter; InputError names `source`."""
        try:
            return type(self).model_validate((stored or {}) | self.model_dump(exclude_unset=True))
        except ValueError as error:
            raise InputError(f"{source}: its prompt settings cannot be used: {error}", field="adapter") from error
