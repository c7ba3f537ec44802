"""Questions as tensors.

Axes: B questions with their further ones, G questions whose further ones read the same neighbours, T tokens of the longest
prompt with its answer, K neighbours, R tokens of the longest neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openbook_core.errors import InputError
from openbook_trainer.recall.source import Question

IGNORED = -100


@dataclass(frozen=True)
class RecallBatch:
    """`labels_BT` has the answers' tokens and their ends, each where the token before it is read, else IGNORED.

    A row's phase is its prompt's length, so that its last token already uses the neighbours; each row has one chunk. A
    question's further ones follow it as rows, and read the same row of neighbours.
    """

    ids_BT: Tensor
    labels_BT: Tensor
    phases: tuple[int, ...]
    neighbor_ids_G1KR: Tensor
    lengths_G1K: Tensor


def to_batch(questions: Sequence[Question], end: int, chunk_length: int) -> RecallBatch:
    """Raises InputError for a prompt and an answer that are longer than a chunk together."""
    rows = [row for each in questions for row in each.asked]
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    if longest > chunk_length:
        raise InputError(
            f"a prompt and its answer are {longest} tokens; with chunks of {chunk_length} they would not be answered by "
            "the neighbours of the prompt alone. Shorten them, or raise model.chunk_length",
            field="model.chunk_length",
        )
    ids, labels = [], []
    for prompt, answer in rows:
        padding = longest - len(prompt) - len(answer)
        ids.append([*prompt, *answer, *[0] * padding])
        labels.append([*[IGNORED] * (len(prompt) - 1), *answer, end, *[IGNORED] * padding])
    ids_BT, labels_BT = torch.tensor(ids), torch.tensor(labels)
    ids_BKR, lengths_BK = neighbor_rows([each.passages for each in questions])
    phases = tuple(len(prompt) for prompt, _ in rows)
    return RecallBatch(ids_BT, labels_BT, phases, ids_BKR[:, None], lengths_BK[:, None])


def neighbor_rows(passages: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Ids [B, K, R] and lengths [B, K] (0: a missing one), as short as the longest passage allows."""
    k = max(1, max(len(row) for row in passages))
    r = max(1, max((len(each) for row in passages for each in row), default=1))
    padded = [[[*passage, *[0] * (r - len(passage))] for passage in [*row, *[[]] * (k - len(row))]] for row in passages]
    lengths = [[*map(len, row), *[0] * (k - len(row))] for row in passages]
    return torch.tensor(padded), torch.tensor(lengths)
