"""The prompt recipe: which words stand around the passages and the question. Replace this module to try another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openbook_generator.config import PromptSettings


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
class Message:
    """One chat message; `passages` names the character span [start, end) in `content` of each passage, by its rank."""

    role: str
    content: str
    passages: tuple[tuple[int, int, int], ...] = ()


def render_passage(passage: Passage, settings: PromptSettings) -> str:
    """`title: text`, the beginning of the continuation after it, on one line."""
    body = passage.text + passage.continuation[: settings.continuation_characters]
    line = " ".join(body.split())
    return f"{passage.title}: {line}" if passage.title else line


def build_messages(question: str, passages: Sequence[str], settings: PromptSettings) -> list[Message]:
    """The messages of the last turn: rendered `passages`, best first, and the question, as one user message.

    Without passages the question stands alone, as it was asked.
    """
    if not passages:
        return [Message("user", question)]
    context, spans = join_passages(passages, settings)
    content = f"{context}\n\nQuestion: {question}"
    return [Message("user", f"{content} {settings.instruction}".rstrip(), spans)]


def build_prompt(prompt: str, passages: Sequence[str], settings: PromptSettings) -> Message:
    """The text of a plain completion: passages, an empty line, the prompt."""
    if not passages:
        return Message("user", prompt)
    context, spans = join_passages(passages, settings)
    return Message("user", f"{context}\n\n{prompt}", spans)


def join_passages(passages: Sequence[str], settings: PromptSettings) -> tuple[str, tuple[tuple[int, int, int], ...]]:
    """Passages joined by newlines in the order of `settings`, and (rank, start, end) of each."""
    ranks = list(range(len(passages)))
    if settings.order == "last-best":
        ranks.reverse()
    spans, position = [], 0
    for rank in ranks:
        spans.append((rank, position, position + len(passages[rank])))
        position += len(passages[rank]) + 1
    return "\n".join(passages[rank] for rank in ranks), tuple(spans)
