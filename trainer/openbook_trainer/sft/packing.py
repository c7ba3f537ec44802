"""Examples as tokens, and several of them in a row. Axes: B rows, T tokens of a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer
from openbook_prompt.chat import ChatFormat, fit
from openbook_prompt.chat import Encoded as Prompt
from openbook_prompt.recipe import Message, build_messages, lead_in
from openbook_prompt.settings import PromptSettings
from openbook_trainer.data import IGNORED
from openbook_trainer.sft.readers import Example


@dataclass(frozen=True)
class Encoded:
    """Token ids [t] of prompt and answer, and the label of each: the next token where that is of the answer."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Packed:
    """int64 [B, T] each: token ids (0 as padding), labels, and the number of the example that a token is of."""

    ids_BT: Tensor
    labels_BT: Tensor
    documents_BT: Tensor


def encode_example(
    form: ChatFormat, tokenizer: Tokenizer, example: Example, shown: Sequence[str], settings: PromptSettings, limit: int
) -> Encoded:
    """Prompt as in serving, then answer and end token, together at most `limit` tokens: the worst of `shown` go first.

    Raises InputError for an answer that leaves no room for its question.
    """
    lead = lead_in(example.question, settings) if shown else ""
    answer = tokenizer.encode(f" {example.answer}" if lead else example.answer).tolist()
    if tokenizer.eos_id is not None:
        answer.append(tokenizer.eos_id)

    earlier = [Message(role, text) for role, text in example.turns]

    def encode(kept: Sequence[str]) -> Prompt:
        return form.encode_chat([*earlier, *build_messages(example.question, kept, settings)], lead)

    room = limit - len(answer)
    bare = len(encode([]).ids)
    if bare > room:
        raise InputError(
            f"{example.question[:80]!r}: question and answer have {bare + len(answer)} tokens and row_tokens is "
            f"{limit}; raise row_tokens, or leave the example out (max_characters of its data set)",
            field="row_tokens",
        )
    prompt = fit(tokenizer, shown, room, encode, "question").ids
    ids = [*prompt, *answer]
    return Encoded(ids, [*[IGNORED] * (len(prompt) - 1), *answer, IGNORED])


def pack(examples: Sequence[Encoded], row_tokens: int) -> Packed:
    """First-fit, longest first, into rows of at most `row_tokens` tokens, as long as the longest row."""
    rows: list[list[Encoded]] = []
    for example in sorted(examples, key=lambda each: -len(each.ids)):
        for row in rows:
            if sum(len(each.ids) for each in row) + len(example.ids) <= row_tokens:
                row.append(example)
                break
        else:
            rows.append([example])
    length = max(sum(len(each.ids) for each in row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    documents = torch.full_like(ids, -1)
    for number, row in enumerate(rows):
        start = 0
        for place, example in enumerate(row):
            end = start + len(example.ids)
            ids[number, start:end] = torch.tensor(example.ids)
            labels[number, start:end] = torch.tensor(example.labels)
            documents[number, start:end] = place
            start = end
    return Packed(ids, labels, documents)
