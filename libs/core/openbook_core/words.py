"""Words as evaluations compare them."""

from __future__ import annotations

import re
import string

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_DELETED = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """`text` as SQuAD compares it: words without case, ASCII punctuation and articles, one blank apart."""
    return without_articles(text.lower().translate(_DELETED))


def without_articles(text: str) -> str:
    """The words of lower-case `text` that are no articles, one blank apart."""
    return " ".join(_ARTICLE.sub(" ", text).split())
