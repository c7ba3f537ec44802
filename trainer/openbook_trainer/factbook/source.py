"""The Factbook as a source of questions for `task: recall`: editions of 2015 and 2021, two thirds of the countries."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Literal

from pydantic import Field, PositiveInt

from openbook_core.config import FrozenConfig
from openbook_core.errors import NotFoundError
from openbook_core.fingerprint import canonical_json
from openbook_core.tokenizer import Tokenizer
from openbook_trainer.factbook.examples import Examples
from openbook_trainer.factbook.oracle import OraclePassages
from openbook_trainer.factbook.passages import Line, edition_lines, join
from openbook_trainer.factbook.questions import Asked, asked, code_of, database_rows
from openbook_trainer.recall.source import Asked as AskedOfBooks
from openbook_trainer.recall.source import Books, Question
from openbook_trainer.recall.tokens import Words, end_of, train_tokenizer

LAST = "2026-02-19"
EDITIONS = ("2015-11-18", "2021-02-15")
_LONGEST_PROMPT, _LONGEST_ANSWER = 36, 22  # tokens


def _is_short(prompt: list[int], answer: list[int]) -> bool:
    return len(prompt) <= _LONGEST_PROMPT and len(answer) <= _LONGEST_ANSWER


class FactbookSettings(FrozenConfig):
    """`folder` holds `EDITION.jsonl.zst` and `qa_EDITION_2026-02-19.jsonl.zst` of each training edition; its path may
    name environment variables."""

    kind: Literal["factbook"] = "factbook"
    folder: Path
    vocab_size: PositiveInt = Field(default=4096, description="tokens of the tokenizer, at most")
    questions: PositiveInt = Field(
        default=2, description="of the same passages in training, again where there are no others"
    )
    passage_tokens: PositiveInt = Field(default=64, description="of the databases' passages: the model's chunk length")

    @property
    def path(self) -> Path:
        """The folder, with its variables filled in; raises NotFoundError where it is none."""
        path = Path(os.path.expandvars(self.folder)).expanduser()
        if not path.is_dir():
            raise NotFoundError(f"no folder {path}; set OPENBOOK_DATA, or source.folder", field="source.folder")
        return path


class Editions:
    """The training editions: the lines of every document, and the questions of a part of the countries."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.lines = {edition: edition_lines(folder / f"{edition}.jsonl.zst") for edition in EDITIONS}

    def asked(self, edition: str, part: str) -> list[Asked]:
        return list(asked(self._folder / f"qa_{edition}_{LAST}.jsonl.zst", "old", self.lines[edition], part))

    def documents(self, part: str) -> Iterator[tuple[Line, ...]]:
        """The lines of each document about a country of a part, by the name that the questions call it."""
        for edition in EDITIONS:
            codes = {code_of(row.id) for row in self.asked(edition, part)}
            yield from (lines for name, lines in self.lines[edition].items() if name.rsplit("/", 1)[-1] in codes)


class Factbook:
    """The source; what it draws is a function of the generator that each call is given."""

    def __init__(self, settings: FactbookSettings, tokenizer: Tokenizer, editions: Editions | None = None) -> None:
        self.settings, self.tokenizer, self.end = settings, tokenizer, end_of(tokenizer)
        self._editions = editions or Editions(settings.path)
        self._ids = Words(tokenizer)
        rows = [row for edition in EDITIONS for row in self._editions.asked(edition, "train")]
        self._examples = Examples(rows, list(self._editions.documents("train")), self._count)

    @classmethod
    def make(cls, settings: FactbookSettings, seed: int) -> Factbook:
        """With a tokenizer of its own, trained on the lines of the training countries alone; no seed changes it."""
        editions = Editions(settings.path)
        texts = [join(line.title, line.parts) for lines in editions.documents("train") for line in lines]
        return cls(settings, train_tokenizer(texts, settings.vocab_size), editions)

    @cached_property
    def digest(self) -> str:
        rows = [(row.id, row.answer) for edition in EDITIONS for row in self._editions.asked(edition, "train")]
        text = canonical_json([rows, self.tokenizer.fingerprint.digest])
        return hashlib.sha256(text.encode()).hexdigest()

    def questions(self, rng: Random, count: int, k: int, r: int) -> list[Question]:
        """With names made up; see `examples`. The few that are very long are drawn again: a batch is as long as they."""
        questions: list[Question] = []
        while len(questions) < count:
            drawn = self._examples.draw(rng, k, r)
            question = self._question(drawn.question, drawn.answer, drawn.passages, drawn.gold, drawn.wrong)
            further = [(self._ids(asked), self._ids(f" {answer}")) for asked, answer in drawn.further]
            further = [(prompt, answer) for prompt, answer in further if _is_short(prompt, answer)]
            more = (rng.sample(further, len(further)) + [(question.prompt, question.answer)] * self.settings.questions)[
                : self.settings.questions - 1
            ]
            if _is_short(question.prompt, question.answer):
                questions.append(replace(question, more=tuple(more)))
        return questions

    def held_out(self, rng: Random, count: int, k: int, r: int) -> list[tuple[Question, Question]]:
        """About the validation countries, as the books have them: people who changed from 2015 to 2021."""
        old, new = ({row.id: row for row in self._editions.asked(edition, "validation")} for edition in EDITIONS)
        both = [
            (old[name], new[name])
            for name in sorted(old.keys() & new.keys())
            if old[name].group == "people" and old[name].answer != new[name].answer
        ]
        limit = min(r, self.settings.passage_tokens)
        oracles = [OraclePassages(list(rows.values()), self._count, limit) for rows in (old, new)]
        pairs = []
        for rows in (both[place % len(both)] for place in range(count)):
            state = rng.random()
            first, second = (
                self._question(row.question, row.answer, *oracle.passages(Random(state), row, k))
                for row, oracle in zip(rows, oracles, strict=True)
            )
            pairs.append((first, second))
        return pairs

    def books(self, rng: Random, count: int) -> Books:
        """The first training edition and the last one, with the lines of all countries that are asked about; at most
        `count` questions about people of the test countries."""
        folder, edition = self.settings.path, EDITIONS[0]
        sides = []
        for side, name in (("old", edition), ("new", LAST)):
            lines = edition_lines(folder / f"{name}.jsonl.zst")
            rows = asked(folder / f"qa_{edition}_{LAST}.jsonl.zst", side, lines, "test")
            documents = list(database_rows(lines, self.tokenizer, self.settings.passage_tokens))
            sides.append((documents, {row.id: row for row in rows if row.group == "people" and row.changed}))
        (first, old), (second, new) = sides
        names = sorted(old.keys() & new.keys())
        return Books(
            documents=(first, second),
            questions=[
                AskedOfBooks(old[name].question, ((old[name].answer,), (new[name].answer,)))
                for name in rng.sample(names, min(count, len(names)))
            ],
        )

    def _question(
        self, question: str, answer: str, passages: Sequence[str], gold: int, wrong: Sequence[str]
    ) -> Question:
        return Question(
            prompt=self._ids(question),
            answer=self._ids(f" {answer}"),
            passages=[self._ids(passage) for passage in passages],
            gold=gold,
            wrong=tuple(tuple(self._ids(f" {other}")) for other in wrong),
        )

    def _count(self, text: str) -> int:
        return len(self._ids(text))
