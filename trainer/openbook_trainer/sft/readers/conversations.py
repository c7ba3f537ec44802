"""Formats of conversations: earlier turns stand before the question, and nothing is retrieved.

- `oasst`: OpenAssistant's message trees. Of each tree the best ranked path, and on it one example for each reply of the
  assistant. Options: `language` of the first message ("all" for any); `code`: "without" leaves out replies to
  conversations with a code block, "only" all others.
- `soda`: a dialogue after a narrative, which becomes the system's message; the last utterance is the answer, and whoever
  says it is the assistant throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError
from openbook_trainer.rows import list_of, objects_of, read_rows, text_of, texts_of
from openbook_trainer.sft.readers.rows import Example, Reader

_ROLES = {"prompter": "user", "assistant": "assistant"}
_CODE = "```"


def _oasst(file: Path, options: Mapping[str, str]) -> Iterator[Example]:
    for place, tree in read_rows(file):
        if text_of(tree, "prompt.lang", place) != options["language"] != "all":
            continue
        message, turns = tree["prompt"], list[tuple[str, str]]()
        while message is not None:
            at = f"{place}, message {len(turns) + 1}"
            role = _ROLES.get(text_of(message, "role", at))
            if role != ("assistant" if len(turns) % 2 else "user"):
                raise InputError(
                    f"{at}: field 'role' is {message['role']!r}; prompter and assistant must take turns",
                    field="data",
                )
            turns.append((role, text_of(message, "text", at)))
            has_code = any(_CODE in text for _, text in turns)
            if role == "assistant" and options["code"] in ("all", "only" if has_code else "without"):
                yield _last_of(turns)
            message = _best_reply(message, at)


def _best_reply(message: Mapping[str, Any], place: str) -> dict[str, Any] | None:
    """The one of lowest rank, or the first where none is ranked; deleted ones do not count."""
    given = objects_of(message, "replies", place) if message.get("replies") is not None else []
    replies = [reply for reply in given if not reply.get("deleted")]
    return min(replies, key=lambda reply: _rank(reply, place), default=None)


def _rank(reply: Mapping[str, Any], place: str) -> float:
    rank = reply.get("rank")
    if rank is not None and not isinstance(rank, int):
        raise InputError(f"{place}: field 'rank' of a reply is {rank!r}, expected a number or null", field="data")
    return float("inf") if rank is None else rank


def _last_of(turns: list[tuple[str, str]]) -> Example:
    return Example(turns[-2][1], turns[-1][1], passages=(), turns=tuple(turns[:-2]))


def _soda(file: Path, _: Mapping[str, str]) -> Iterator[Example]:
    for place, row in read_rows(file):
        narrative = text_of(row, "narrative", place)
        said, speakers = list_of(row, "dialogue", place), texts_of(row, "speakers", place)
        if len(said) != len(speakers) or len(set(speakers)) < 2:
            raise InputError(
                f"{place}: fields 'dialogue' and 'speakers' have {len(said)} and {len(speakers)} entries of "
                f"{len(set(speakers))} speakers; expected as many of one as of the other, and two speakers",
                field="data",
            )
        turns: list[tuple[str, str]] = []
        for number, speaker in enumerate(speakers):
            role, text = "assistant" if speaker == speakers[-1] else "user", text_of(row, f"dialogue.{number}", place)
            if turns and turns[-1][0] == role:
                turns[-1] = (role, f"{turns[-1][1]}\n{text}")
            elif turns or role == "user":
                turns.append((role, text))
        yield _last_of([("system", narrative), *turns])


READERS = {
    "oasst": Reader(_oasst, {"language": "en", "code": ("all", "without", "only")}),
    "soda": Reader(_soda, {}),
}
