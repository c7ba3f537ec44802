"""The text of a chunk, defined so that the chunks of a document join to the document.

D is the decoded text of all the document's tokens. A chunk that ends at token e reaches up to the character B(e): the
decoded text of the first e tokens, without up to three U+FFFD at its end (the bytes there may be the beginning of a
character that the next chunk completes), or the end of D for the last chunk. The text of a chunk is D[B(s) : B(e)], so
a character that is cut by a border belongs wholly to the chunk that holds its last byte.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openbook_core.tokenizer import Tokenizer

# Tokens of left context: at least 16 bytes of byte-level tokens, so 3 or more whole characters.
CONTEXT = 16
_REPLACEMENT = "\ufffd"


def chunk_text(
    tokenizer: Tokenizer, left: NDArray[np.unsignedinteger], tokens: NDArray[np.unsignedinteger], *, last: bool
) -> str:
    """Text of the chunk `tokens`, whose document goes on before it with `left` (its last CONTEXT tokens or all there
    are); `last` says that the document ends with it."""
    before = _settled(tokenizer.decode(left)) if len(left) else 0
    both = tokenizer.decode(np.concatenate([left, tokens]) if len(left) else tokens)
    return both[before : len(both) if last else _settled(both)]


def _settled(text: str) -> int:
    """Length of `text` without up to three replacement characters at its end."""
    end = len(text)
    while end > max(0, len(text) - 3) and text[end - 1] == _REPLACEMENT:
        end -= 1
    return end
