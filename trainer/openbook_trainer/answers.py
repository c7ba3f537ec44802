"""Whether a text gives an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence


def names(text: str, aliases: Sequence[str]) -> bool:
    """Whether an alias stands in the text as whole words or numbers (`6` is not in `5.6`).

    Case does not matter, nor does the kind of white space; a blank alias is in no text.
    """
    return any(re.search(_whole(alias), text, re.IGNORECASE) for alias in aliases if alias.strip())


def _whole(alias: str) -> str:
    words = alias.split()
    spaced = r"\s+".join(map(re.escape, words))
    before = r"(?<![\w-])" if words[0][0].isdigit() else r"(?<!\w)"
    return rf"{before}(?<!\d[.,]){spaced}(?!\w)(?![.,]\d)"
