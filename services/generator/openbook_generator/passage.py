"""A passage as the retriever found it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """One retrieved chunk and what is known of its document."""

    chunk_id: int
    document_id: str
    title: str
    uri: str
    licence: str
    score: float
    text: str
    continuation: str
