"""Exact duplicates: texts that are equal after Unicode NFC, with each run of blanks as one space and none at the ends.

Memory: about 150 bytes for a document that is kept.
"""

from __future__ import annotations

import unicodedata

import blake3

DIGEST_BYTES = 16


def text_digest(text: str) -> bytes:
    """The digest that equal texts share, DIGEST_BYTES long."""
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    return blake3.blake3(plain.encode("utf-8", "surrogatepass")).digest(DIGEST_BYTES)


class ExactDuplicates:
    """Texts of the documents that are kept."""

    def __init__(self) -> None:
        self._ids: dict[bytes, str] = {}

    def find(self, digest: bytes) -> str | None:
        """Id of the document that has this text."""
        return self._ids.get(digest)

    def keep(self, digest: bytes, external_id: str) -> None:
        self._ids[digest] = external_id
