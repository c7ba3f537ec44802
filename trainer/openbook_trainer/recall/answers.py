"""Greedy answers through the cache, as in serving, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openbook_core.tokenizer import Tokenizer
from openbook_model import Neighbors, RetroModel
from openbook_trainer.eval.tasks.decoding import Decoder
from openbook_trainer.finder import FindNeighbors
from openbook_trainer.recall.batches import neighbor_rows
from openbook_trainer.recall.source import Question

BATCH = 64


@torch.no_grad()
def answer(
    model: RetroModel,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    find: FindNeighbors | None,
    max_tokens: int,
) -> list[str]:
    """The greedy answer to each prompt, of at most `max_tokens` tokens; its last token asks `find` for neighbours (None:
    without retrieval). Blanks at the ends of an answer do not count."""
    longest = max(len(prompt) for prompt in prompts) + max_tokens
    decoder = Decoder(model, tokenizer, batch=min(BATCH, len(prompts)), max_context=longest, find=find)
    starts = range(0, len(prompts), BATCH)
    return [each for start in starts for each in decoder.answers(prompts[start : start + BATCH], max_tokens)]


class Given:
    """A FindNeighbors that has the passages of the prompts in the order in which they ask."""

    def __init__(self, passages: Sequence[Sequence[Sequence[int]]]) -> None:
        self._passages = passages
        self._asked = 0

    def __call__(self, texts: Sequence[str]) -> Neighbors:
        start, self._asked = self._asked, self._asked + len(texts)
        return Neighbors(*neighbor_rows(self._passages[start : self._asked]))


def share(given: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    """How many of the answers are exactly one of the texts wanted."""
    return sum(each in right for each, right in zip(given, wanted, strict=True)) / len(given)


def grade(
    model: RetroModel, tokenizer: Tokenizer, pairs: Sequence[tuple[Question, Question]], max_tokens: int
) -> dict[str, float]:
    """Shares of the questions, each from two books that answer its prompt differently, with the right passage given.

    `matching` and `other`: answered as the book says that is read; `old`: as the first book says, reading the other.
    `one`: with the right passage alone (copying); `distractor`: as a wrong passage says, reading both (selection).
    `none`: without retrieval; `shuffled`: with the passages of another question. `matching beside X`: of the questions
    whose right passage is beside one of kind X.
    """
    firsts, others = [first for first, _ in pairs], [other for _, other in pairs]
    prompts = [first.prompt for first in firsts]

    def ask(passages: Sequence[Sequence[list[int]]] | None) -> list[str]:
        return answer(model, tokenizer, prompts, None if passages is None else Given(passages), max_tokens)

    def text(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids).strip()

    old, new = [[text(each.answer)] for each in firsts], [[text(each.answer)] for each in others]
    matching, other = ask([each.passages for each in firsts]), ask([each.passages for each in others])
    shuffled = [each.passages for each in firsts[1:] + firsts[:1]]
    kinds = sorted({kind for each in firsts for kind in each.beside})
    beside = {
        kind: [(given, right) for given, right, each in zip(matching, old, firsts, strict=True) if kind in each.beside]
        for kind in kinds
    }
    return {
        "matching": share(matching, old),
        "one": share(ask([[each.passages[each.gold]] for each in firsts]), old),
        "distractor": share(matching, [[text(wrong) for wrong in each.wrong] for each in firsts]),
        "other": share(other, new),
        "old": share(other, old),
        "none": share(ask(None), old),
        "shuffled": share(ask(shuffled), old),
        **{f"matching beside {kind}": share(*zip(*pairs, strict=True)) for kind, pairs in beside.items()},
    }


def grade_seen(model: RetroModel, tokenizer: Tokenizer, questions: Sequence[Question], max_tokens: int) -> float:
    """The share of questions of the training's kind that are answered as their passages say."""
    given = answer(
        model,
        tokenizer,
        [each.prompt for each in questions],
        Given([each.passages for each in questions]),
        max_tokens,
    )
    return share(given, [[tokenizer.decode(each.answer).strip()] for each in questions])
