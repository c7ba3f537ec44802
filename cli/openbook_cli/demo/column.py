"""The second column: the shipped model that answers from its neighbours alone, which it reads through cross attention.

Nothing but the question is in its prompt. Its book holds one passage a document, in its own tokens.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from openbook_cli.demo.load import Call
from openbook_cli.demo.questions import Question, grade
from openbook_trainer.parts import is_of_part

DATABASE = "factbook-passages"
KIND = "cross_attention"
MAX_TOKENS = 32
# The embedder may serve bfloat16, whose last bits depend on who shares a batch: near calls may come out otherwise.
_AMONG = 16


def write_passages(edition: Path, model: Path, out: Path, documents: int | None) -> None:
    """The book of an edition's first documents as JSON Lines, cut to the chunks of the model's tokenizer."""
    from openbook_core.tokenizer import Tokenizer
    from openbook_model.checkpoint import read_config
    from openbook_trainer.factbook.passages import edition_lines
    from openbook_trainer.factbook.questions import database_rows

    lines = dict(islice(edition_lines(edition).items(), documents))
    rows = database_rows(lines, Tokenizer.load(model), read_config(model).chunk_length)
    partial = out.with_name(out.name + ".tmp")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, out)


def read(client: httpx.Client, url: str, question: str, max_tokens: int) -> Call:
    """One completion over REST, with no passage in the prompt."""
    body = {"prompt": question, "max_tokens": max_tokens, "temperature": 0, "retrieval": {"k": 0}}
    start = time.monotonic()
    reply = client.post(f"{url}/v1/completions", json=body)
    seconds = time.monotonic() - start
    if reply.status_code != 200:
        return Call(KIND, start, seconds, error=f"HTTP {reply.status_code}: {reply.text[:200]}")
    data: dict[str, Any] = reply.json()
    retrieval = data["retrieval"]
    found = tuple(int(chunk) for each in retrieval["neighbors"] for chunk in each["chunk_ids"])
    return Call(
        KIND,
        start,
        seconds,
        error="" if not retrieval["shown"] else "the prompt holds text of the book",
        snapshot=retrieval["snapshot"],
        answer=data["choices"][0]["text"],
        shown=tuple(f"#{chunk}" for chunk in found),
        cross_attention=retrieval["cross_attention"],
        question=question,
        neighbors=found,
    )


class NeighborChecker:
    """Searches the snapshots itself, with vectors of the questions [q, d]: a neighbour must be near in the one named."""

    def __init__(self, folders: Sequence[Path], questions: Sequence[str], vectors_QD: NDArray[np.float32]) -> None:
        from openbook_database.snapshot import Snapshot

        self._near: Mapping[tuple[str, str], frozenset[int]] = {
            (snapshot.id, question): frozenset(ids.tolist())
            for snapshot in map(Snapshot.open, folders)
            for question, ids in zip(questions, snapshot.search(vectors_QD, _AMONG).ids_QK, strict=True)
        }

    def is_mixed(self, call: Call) -> bool:
        """Whether a neighbour is not among the nearest of the question in the snapshot that the reply names."""
        near = self._near.get((call.snapshot, call.question))
        return near is None or not near.issuperset(call.neighbors)


def column_figures(questions: Sequence[Question], rounds: Mapping[str, Sequence[Call]]) -> dict[str, Any]:
    """Grades of all questions, and of those about countries that the model was not trained on."""
    held_out = [place for place, question in enumerate(questions) if is_of_part(question.country, "test")]
    some = [questions[place] for place in held_out]
    graded: dict[str, Any] = {"held_out": {}}
    for name, calls in rounds.items():
        live = "new" if name == "after" else "old"
        answers = [call.answer for call in calls]
        graded[name] = grade(answers, questions, live=live)
        graded["held_out"][name] = grade([answers[place] for place in held_out], some, live=live)
    states = sorted({call.cross_attention for calls in rounds.values() for call in calls if not call.error})
    return {"cross_attention": ", ".join(states), **graded}
