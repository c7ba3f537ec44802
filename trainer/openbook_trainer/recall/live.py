"""The same weights and questions on two books that the running retriever serves, one after the other.

Axes: L chunks that ask (one a question), K neighbours, R tokens of a neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from openbook_core.tokenizer import Tokenizer
from openbook_model import Neighbors, RetroModel, weights_hash
from openbook_trainer.answers import names
from openbook_trainer.finder import FindNeighbors, NeighborFinder
from openbook_trainer.recall.answers import Given, answer, share
from openbook_trainer.recall.source import Asked


class Recorded:
    """A FindNeighbors that keeps what another one finds: token ids of each question's neighbours, best first."""

    def __init__(self, find: FindNeighbors) -> None:
        self._find = find
        self.passages: list[list[list[int]]] = []

    def __call__(self, texts: Sequence[str]) -> Neighbors:
        found = self._find(texts)
        assert found.lengths_LK is not None, "a finder says how long its neighbours are"
        for ids_KR, lengths_K in zip(found.ids_LKR.tolist(), found.lengths_LK.tolist(), strict=True):
            self.passages.append([ids[:length] for ids, length in zip(ids_KR, lengths_K, strict=True) if length])
        return found


def ask_books(
    model: RetroModel,
    tokenizer: Tokenizer,
    questions: Sequence[Asked],
    address: str,
    database: str,
    make_live: Callable[[int], str],
    max_tokens: int,
) -> dict[str, Any]:
    """Ask every question of both books: `make_live` swaps the database to one and returns its snapshot.

    For each book the shares of questions that are answered as it says (`matching`), as the other one says (`old`), whose
    answer is in what was retrieved (`retrieved`), and of those the share that is answered (`matching_of_retrieved`).
    `none` and `shuffled` are answered as the first book says, without retrieval and with what another question found.
    Raises what NeighborFinder does.
    """
    prompts = [[int(token) for token in tokenizer.encode(each.question)] for each in questions]
    before, sides, found, answers = weights_hash(model), [], [], []
    for book in range(2):
        snapshot = make_live(book)
        with closing(NeighborFinder(address, database, snapshot, model.config, tokenizer)) as finder:
            recorded = Recorded(finder)
            given = answer(model, tokenizer, prompts, recorded, max_tokens)
        right = [each.answers[book] for each in questions]
        held = [_holds(tokenizer, passages, texts) for passages, texts in zip(recorded.passages, right, strict=True)]
        read = [(each, texts) for each, texts, has in zip(given, right, held, strict=True) if has]
        sides.append(
            {
                "snapshot": snapshot,
                "matching": share(given, right),
                "old": share(given, [each.answers[1 - book] for each in questions]),
                "retrieved": sum(held) / len(held),
                "matching_of_retrieved": share(*zip(*read, strict=True)) if read else 0.0,
            }
        )
        found.append(recorded.passages)
        answers.append(given)
    first = [each.answers[0] for each in questions]
    half = len(questions) // 2
    elsewhere = found[0][half:] + found[0][:half]
    return {
        "questions": len(questions),
        "books": sides,
        "none": share(answer(model, tokenizer, prompts, None, max_tokens), first),
        "shuffled": share(answer(model, tokenizer, prompts, Given(elsewhere), max_tokens), first),
        "weights_hash_before": before,
        "weights_hash_after": weights_hash(model),
        "sample": [
            {"question": each.question, "answers": [given[place] for given in answers], "right": each.answers}
            for place, each in enumerate(questions[:5])
        ],
    }


def _holds(tokenizer: Tokenizer, passages: Sequence[Sequence[int]], texts: Sequence[str]) -> bool:
    return any(names(tokenizer.decode(passage), texts) for passage in passages)
