"""Where questions come from, with the passages that answer them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Protocol

from openbook_core.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """Token ids of a prompt, its answer (without an end), and its k neighbours, at most r tokens each.

    `passages[gold]` answers it; `wrong` are the answers that other passages would give to the same words. `beside` says
    of what kind the others are, in any order; a source may have no kinds. `more`: prompts and answers of further questions
    that the same passages answer, to be learnt from beside this one; equally many in a batch.
    """

    prompt: list[int]
    answer: list[int]
    passages: list[list[int]]
    gold: int
    wrong: tuple[tuple[int, ...], ...] = ()
    beside: tuple[str, ...] = ()
    more: tuple[tuple[list[int], list[int]], ...] = ()

    @property
    def asked(self) -> tuple[tuple[list[int], list[int]], ...]:
        """Prompts and answers, its own first."""
        return ((self.prompt, self.answer), *self.more)


@dataclass(frozen=True)
class Asked:
    """A question, and for each book the texts that answer it there."""

    question: str
    answers: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Books:
    """Two books to ask the same of: rows of JSON Lines files for `openbook db build`, and questions that both answer."""

    documents: tuple[list[dict[str, str]], list[dict[str, str]]]
    questions: list[Asked]


class RecallSource(Protocol):
    """The methods are functions of the generator and the other arguments alone, so a run can be resumed."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of prompts, answers, passages and of every database that is asked later."""

    @property
    def end(self) -> int:
        """The token after an answer."""

    @property
    def digest(self) -> str:
        """Changes when what is drawn would."""

    def questions(self, rng: Random, count: int, k: int, r: int) -> list[Question]:
        """Questions to learn from."""

    def held_out(self, rng: Random, count: int, k: int, r: int) -> list[tuple[Question, Question]]:
        """Questions on what was never trained on: each from two books that answer the same prompt differently."""

    def books(self, rng: Random, count: int) -> Books:
        """Two books with `count` documents each, on what was never trained on, for the running retriever."""
