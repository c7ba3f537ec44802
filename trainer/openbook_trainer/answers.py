"""Whether a text gives an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence


def names(text: str, aliases: Sequence[str]) -> bool:
    """Whether an alias stands in the text as whole words or numbers (`6` is not in `5.6`); case does not matter."""
    return any(re.search(_whole(alias), text, re.IGNORECASE) for alias in aliases)


def _whole(alias: str) -> str:
    before = r"(?<![\w-])" if alias[:1].isdigit() else r"(?<!\w)"
    return rf"{before}(?<!\d[.,]){re.escape(alias)}(?!\w)(?![.,]\d)"
