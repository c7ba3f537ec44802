"""A passage as the retriever found it, and what of passages is put before the model."""

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


@dataclass(frozen=True)
class Extract:
    """Text for the prompt, the chunks that it is from (continuations included), and the ranks of their passages."""

    text: str
    chunk_ids: tuple[int, ...]
    ranks: tuple[int, ...]
