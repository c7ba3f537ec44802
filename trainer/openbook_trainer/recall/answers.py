"""Greedy answers through the cache, as in serving, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openbook_core.tokenizer import Tokenizer
from openbook_model import Neighbors, RetroModel
from openbook_trainer.eval.tasks.decoding import Decoder
from openbook_trainer.recall.batches import neighbor_rows
from openbook_trainer.recall.source import Question

BATCH = 64


@torch.no_grad()
def answer(
    model: RetroModel,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    passages: Sequence[Sequence[Sequence[int]]] | None,
    max_tokens: int,
) -> list[str]:
    """The greedy answer to each prompt, of at most `max_tokens` tokens, with its passages as the neighbours that its
    last token finds; None: without retrieval. Blanks at the ends of an answer do not count."""
    answers: list[str] = []
    longest = max(len(prompt) for prompt in prompts) + max_tokens
    for start in range(0, len(prompts), BATCH):
        asked = list(prompts[start : start + BATCH])
        find = None
        if passages is not None:
            ids_LKR, lengths_LK = neighbor_rows(passages[start : start + BATCH])
            found = Neighbors(ids_LKR, lengths_LK)
            find = lambda texts, found=found: found  # noqa: E731 - every prompt asks once, all in the first call
        decoder = Decoder(model, tokenizer, batch=len(asked), max_context=longest, find=find)
        answers += decoder.answers(asked, max_tokens)
    return answers


def grade(
    model: RetroModel, tokenizer: Tokenizer, pairs: Sequence[tuple[Question, Question]], max_tokens: int
) -> dict[str, float]:
    """Shares of the questions, each from two books that answer its prompt differently, with the right passage given.

    `matching` and `other`: answered as the book says that is read; `old`: as the first book says, reading the other.
    `one`: with the right passage alone (copying); `distractor`: as a wrong passage says, reading both (selection).
    `none`: without retrieval; `shuffled`: with the passages of another question.
    """
    firsts, others = [first for first, _ in pairs], [other for _, other in pairs]
    prompts = [first.prompt for first in firsts]

    def ask(passages: Sequence[Sequence[list[int]]] | None) -> list[str]:
        return answer(model, tokenizer, prompts, passages, max_tokens)

    def share(given: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
        return sum(each in right for each, right in zip(given, wanted, strict=True)) / len(given)

    def text(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids).strip()

    old, new = [[text(each.answer)] for each in firsts], [[text(each.answer)] for each in others]
    matching, other = ask([each.passages for each in firsts]), ask([each.passages for each in others])
    shuffled = [each.passages for each in firsts[1:] + firsts[:1]]
    return {
        "matching": share(matching, old),
        "one": share(ask([[each.passages[each.gold]] for each in firsts]), old),
        "distractor": share(matching, [[text(wrong) for wrong in each.wrong] for each in firsts]),
        "other": share(other, new),
        "old": share(other, old),
        "none": share(ask(None), old),
        "shuffled": share(ask(shuffled), old),
    }
