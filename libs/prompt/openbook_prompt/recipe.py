"""The prompt recipe: which words stand around the passages and the question. Replace this module to try another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from openbook_prompt.extracts import choose_extracts
from openbook_prompt.passage import Extract, Passage
from openbook_prompt.settings import PromptSettings


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


def choose_shown(question: str, passages: Sequence[Passage], settings: PromptSettings) -> list[Extract]:
    """What is put into the prompt, best first: extracts of the passages, or all of them whole."""
    if settings.extracts:
        return choose_extracts(question, passages, settings)
    shown = []
    for rank, passage in enumerate(passages):
        following = (passage.chunk_id + 1,) if passage.continuation and settings.continuation_characters else ()
        shown.append(Extract(render_passage(passage, settings), (passage.chunk_id, *following), (rank,)))
    return shown


def build_messages(question: str, passages: Sequence[str], settings: PromptSettings) -> list[Message]:
    """The messages of the last turn: rendered `passages`, best first, and the question, as one user message.

    Without passages the question stands alone, as it was asked.
    """
    if not passages:
        return [Message("user", question)]
    context, spans = join_passages(passages, settings)
    heading = "Context:\n"
    spans = tuple((rank, start + len(heading), end + len(heading)) for rank, start, end in spans)
    content = f"{heading}{context}\n\nQuestion: {question}\n{settings.instruction}"
    return [Message("user", content.rstrip(), spans)]


_IS_QUESTION = re.compile(r"(?:who|what|which|where|when) (is|are|was|were) ([^?!.\n]+)\??", re.IGNORECASE)


def lead_in(question: str, settings: PromptSettings) -> str:
    """The beginning of the answer that is put into the model's mouth: "Who is X?" is answered "X is".

    Nothing for what is more than one such question, in another form, or in another language than English.
    """
    match = _IS_QUESTION.fullmatch(question.strip()) if settings.lead_in else None
    return f"{match[2][:1].upper()}{match[2][1:]} {match[1]}" if match and match[2] else ""


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
