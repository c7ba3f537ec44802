"""What a model that reads the Factbook through its cross attention alone answers, with given and with found passages."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from openbook_core.tokenizer import Tokenizer
from openbook_model import RetroModel
from openbook_trainer.eval.editions import judge
from openbook_trainer.eval.intervals import figure
from openbook_trainer.factbook.oracle import OraclePassages
from openbook_trainer.factbook.passages import counter
from openbook_trainer.factbook.questions import Asked
from openbook_trainer.finder import FindNeighbors
from openbook_trainer.recall.answers import Given, answer
from openbook_trainer.recall.live import Recorded

MAX_TOKENS = 32
_SEED = "factbook oracle"
# Token ids of the passages of each question.
Passages = list[list[list[int]]]


class Asker:
    """Asks one model the questions of one edition."""

    def __init__(self, model: RetroModel, tokenizer: Tokenizer, rows: Sequence[Asked]) -> None:
        """`rows` whose answer a cut between two passages has parted are not asked; `parted` counts them by group."""
        self._model, self._tokenizer = model, tokenizer
        limit = model.config.chunk_length
        self._oracle = OraclePassages(rows, counter(tokenizer), limit)
        self.rows = [row for row in rows if self._oracle.holds(row)]
        self.parted = Counter(row.group for row in rows if not self._oracle.holds(row))

    def given(self, k: int) -> Passages:
        """The right passage, with k - 1 of the same question about other countries, in any order."""
        random = Random(_SEED)
        return [self._encode(self._oracle.passages(random, row, k)[0]) for row in self.rows]

    def right_found(self, passages: Passages) -> list[float]:
        """For each question 1 where its right passage is among these, else 0."""
        wanted = [self._encode(self._oracle.passages(Random(_SEED), row, 1)[0])[0] for row in self.rows]
        return [float(each in some) for each, some in zip(wanted, passages, strict=True)]

    def ask(self, find: FindNeighbors | None) -> list[str]:
        """The greedy answers. Nothing but the question is in the prompt; `find` gives what is read."""
        prompts = [self._tokenizer.encode(row.question).tolist() for row in self.rows]
        return answer(self._model, self._tokenizer, prompts, find, MAX_TOKENS)

    def score(self, answers: Sequence[str], extra: dict[str, Sequence[float]] | None = None) -> dict[str, Any]:
        """By group of questions: `exact` matches, and of those whose answer is another one in the other edition, what
        is `right` and `stale` as `eval.editions.judge` has it; each with its interval. `exact_of_all` counts the parted
        ones as wrong. `extra`: more values by question.
        """
        exact = [float(text == row.answer) for text, row in zip(answers, self.rows, strict=True)]
        by_group = self._by_group(lambda place: True)
        changed = self._by_group(lambda place: self.rows[place].changed)
        report: dict[str, Any] = {}
        for group, places in by_group.items():
            verdicts = [
                judge(answers[place], self.rows[place].aliases, self.rows[place].other) for place in changed[group]
            ]
            right = [exact[place] for place in places]
            report[group] = {"questions": len(places), **figure("exact", right), "parted": self.parted[group]}
            report[group] |= {"exact_of_all": sum(right) / (len(right) + self.parted[group])}
            for name, values in (extra or {}).items():
                report[group] |= figure(name, [values[place] for place in places])
            if verdicts:
                report[group] |= {"changed": len(verdicts)}
                report[group] |= figure("right", [float(each.right) for each in verdicts])
                report[group] |= figure("stale", [float(each.stale) for each in verdicts])
        return report

    def _by_group(self, wanted: Callable[[int], bool]) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = defaultdict(list)
        for place, row in enumerate(self.rows):
            if wanted(place):
                groups[row.group].append(place)
        return groups

    def _encode(self, passages: Sequence[str]) -> list[list[int]]:
        return [self._tokenizer.encode(passage).tolist() for passage in passages]


def oracle_report(asker: Asker) -> dict[str, Any]:
    """With the right passage alone (copying), beside a wrong one (selection), without any, and with another question's."""
    two, half = asker.given(2), len(asker.rows) // 2
    return {
        "parted": asker.parted.total(),
        "k1": asker.score(asker.ask(Given(asker.given(1)))),
        "k2": asker.score(asker.ask(Given(two))),
        "none": asker.score(asker.ask(None)),
        "shuffled": asker.score(asker.ask(Given([*two[half:], *two[:half]]))),
    }


def live_report(asker: Asker, find: FindNeighbors) -> dict[str, Any]:
    """With what the running retriever finds; `right_found`: the right passage is among it."""
    recorded = Recorded(find)
    answers = asker.ask(recorded)
    return asker.score(answers, {"right_found": asker.right_found(recorded.passages)})
