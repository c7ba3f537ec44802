"""Examples as tokens, and several of them in a row.

Axes: B rows, T tokens of a row, M tokens of a chunk, L chunks of a row, K neighbours, R tokens of a neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer
from openbook_prompt.chat import ChatFormat, fit
from openbook_prompt.chat import Encoded as Prompt
from openbook_prompt.recipe import Message, build_messages, lead_in
from openbook_prompt.settings import PromptSettings
from openbook_trainer.answers import names
from openbook_trainer.data import IGNORED
from openbook_trainer.sft.readers import Example


@dataclass(frozen=True)
class Encoded:
    """Token ids [t] of prompt and answer, the label of each (the next token where that is of the answer), and t of the prompt."""

    ids: list[int]
    labels: list[int]
    prompt: int


@dataclass(frozen=True)
class Packed:
    """int64 [B, T] each: token ids (0 as padding), labels, and the number of the example that a token is of (-1: none).

    Of rows on a chunk grid perhaps the neighbours of each chunk: their token ids [B, L, K, R] and lengths [B, L, K].
    """

    ids_BT: Tensor
    labels_BT: Tensor
    documents_BT: Tensor
    neighbor_ids_BLKR: Tensor | None = None
    neighbor_lengths_BLK: Tensor | None = None

    def rows(self) -> Iterator[Packed]:
        """One row at a time."""
        for row in range(len(self.ids_BT)):
            here = slice(row, row + 1)
            found = (self.neighbor_ids_BLKR, self.neighbor_lengths_BLK)
            ids_BLKR, lengths_BLK = (None if each is None else each[here] for each in found)
            yield Packed(self.ids_BT[here], self.labels_BT[here], self.documents_BT[here], ids_BLKR, lengths_BLK)


def encode_example(
    form: ChatFormat,
    tokenizer: Tokenizer,
    example: Example,
    shown: Sequence[str],
    settings: PromptSettings,
    limit: int,
    *,
    only_answerable: bool = False,
) -> Encoded | None:
    """Prompt as in serving, then answer and end token, together at most `limit` tokens: the worst of `shown` go first.

    With `only_answerable` None where something was to be shown and no answer is in what fits. Raises InputError for an
    answer that leaves no room for its question.
    """
    prompt, answer = _encode(form, tokenizer, example, shown, settings, limit)
    if shown and not prompt.texts:
        prompt, answer = _encode(form, tokenizer, example, [], settings, limit)
    if only_answerable and shown and not names(" ".join(prompt.texts.values()), (example.answer, *example.aliases)):
        return None
    return Encoded([*prompt.ids, *answer], [*[IGNORED] * (len(prompt.ids) - 1), *answer, IGNORED], len(prompt.ids))


def bare_tokens(form: ChatFormat, tokenizer: Tokenizer, example: Example, settings: PromptSettings) -> int:
    """Tokens of the example without passages, answer and end token included."""
    prompt, answer = _bare(form, tokenizer, example, settings, "")
    return len(prompt.ids) + len(answer)


def _encode(
    form: ChatFormat, tokenizer: Tokenizer, example: Example, shown: Sequence[str], settings: PromptSettings, limit: int
) -> tuple[Prompt, list[int]]:
    lead = lead_in(example.question, settings) if shown else ""
    bare, answer = _bare(form, tokenizer, example, settings, lead)
    room = limit - len(answer)
    if len(bare.ids) > room:
        raise InputError(
            f"{example.question[:80]!r}: question and answer have {len(bare.ids) + len(answer)} tokens, {limit} fit "
            "into a row; raise row_tokens, or leave the example out (max_characters of its data set)",
            field="row_tokens",
        )

    def encode(kept: Sequence[str]) -> Prompt:
        return form.encode_chat(_messages(example, kept, settings), lead)

    return fit(tokenizer, shown, room, encode, "question"), answer


def _bare(
    form: ChatFormat, tokenizer: Tokenizer, example: Example, settings: PromptSettings, lead: str
) -> tuple[Prompt, list[int]]:
    answer = tokenizer.encode(f" {example.answer}" if lead else example.answer).tolist()
    if tokenizer.eos_id is not None:
        answer.append(tokenizer.eos_id)
    return form.encode_chat(_messages(example, [], settings), lead), answer


def _messages(example: Example, shown: Sequence[str], settings: PromptSettings) -> list[Message]:
    earlier = [Message(role, text) for role, text in example.turns]
    return [*earlier, *build_messages(example.question, shown, settings)]


def pack(examples: Sequence[Encoded], row_tokens: int, chunk_length: int = 1) -> Packed:
    """First-fit, longest first, into rows of at most `row_tokens` tokens, as long as the longest row.

    On a chunk grid (`chunk_length` m) every example has padding before it, so that its prompt ends on a border of its
    row as it ends a chunk in serving, and after it up to the next border. Then a row may be longer by 2(m - 1) tokens.
    """
    sizes = [_padded(each, chunk_length) for each in examples]
    rows: list[list[int]] = []
    for number in sorted(range(len(examples)), key=lambda number: -len(examples[number].ids)):
        for row in rows:
            if sum(sizes[each] for each in row) + sizes[number] <= row_tokens:
                row.append(number)
                break
        else:
            rows.append([number])
    length = max(sum(sizes[each] for each in row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    documents = torch.full_like(ids, -1)
    for place, row in enumerate(rows):
        border = 0
        for number in row:
            example = examples[number]
            start = border + -example.prompt % chunk_length
            end = start + len(example.ids)
            ids[place, start:end] = torch.tensor(example.ids)
            labels[place, start:end] = torch.tensor(example.labels)
            documents[place, start:end] = number
            border += sizes[number]
    return Packed(ids, labels, documents)


def _padded(example: Encoded, chunk_length: int) -> int:
    tokens = -example.prompt % chunk_length + len(example.ids)
    return tokens + -tokens % chunk_length


@dataclass(frozen=True)
class Chunk:
    """The tokens of an example in a chunk that it completes: number `place` of its row."""

    row: int
    place: int
    example: int
    ids: list[int]


def chunks_of(packed: Packed, chunk_length: int) -> list[Chunk]:
    """The chunks that ask for neighbours."""
    found = []
    for row, (ids_T, documents_T) in enumerate(zip(packed.ids_BT, packed.documents_BT, strict=True)):
        for place in range(len(ids_T) // chunk_length):
            span = slice(place * chunk_length, (place + 1) * chunk_length)
            example = int(documents_T[span][-1])
            if example >= 0:
                found.append(Chunk(row, place, example, ids_T[span][documents_T[span] == example].tolist()))
    return found
