"""Is what answers a question among the first k chunks that a snapshot finds for it?

Three definitions, each for the chunk alone and with its continuation:

- `answer`: an answer's words stand in it in a row, and it is from the question's document where that is known;
- `evidence`: a run of RUN words of the question's evidence stands in it (all of it where it is shorter);
- `document`: it is from the question's document, whatever stands in it.

Words are compared as SQuAD does: without case, punctuation and articles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from openbook_core.words import normalise
from openbook_database.build.progress import Progress, Update
from openbook_database.query_encoder import QueryEncoder, require_encoder_of
from openbook_database.questions.read import Question
from openbook_database.scoring import MISSING
from openbook_database.snapshot import Snapshot

FIRST = (1, 2, 5, 10)
RUN = 8
INTERVAL = "95% Wilson score interval over questions"
_BATCH = 64
_Z = 1.959963984540054


@dataclass(frozen=True)
class _Passage:
    """A chunk that was found: words of it, and of it with its continuation, each with a blank at both ends."""

    chunk: str
    both: str
    document: str


def evaluate(
    snapshot: Snapshot,
    encoder: QueryEncoder,
    questions: Sequence[Question],
    *,
    progress: Progress = lambda update: None,
) -> dict[str, Any]:
    """Shares of questions with a hit among the first 1, 2, 5 and 10 chunks, with intervals.

    A definition counts the questions that say what it needs; one that none of them has is left out. Raises
    MismatchError for another encoder than the snapshot's.
    """
    require_encoder_of(snapshot.manifest, encoder)
    ranks: dict[tuple[str, str], list[int]] = {}
    for start in range(0, len(questions), _BATCH):
        some = questions[start : start + _BATCH]
        found = _passages(snapshot, encoder, [question.text for question in some])
        for question, passages in zip(some, found, strict=True):
            for name, hits in _judged(question, passages).items():
                ranks.setdefault(name, []).append(next((place for place, hit in enumerate(hits, 1) if hit), 0))
        progress(Update("questions", start + len(some), len(questions), 0.0))
    named = [question.document for question in questions if question.document is not None]
    _, unknown = snapshot.documents.numbers(set(named))
    figures: dict[str, Any] = {
        "snapshot": snapshot.id,
        "database": snapshot.manifest.database,
        "questions": len(questions),
        "documents_named": len(set(named)),
        "documents_unknown": unknown,
        "interval": INTERVAL,
        "dtype": encoder.dtype,
    }
    for (what, part), places in ranks.items():
        figures.setdefault(what, {})[part] = {
            "questions": len(places),
            **{f"hit@{k}": _share(sum(0 < place <= k for place in places), len(places)) for k in FIRST},
        }
    return figures


def _passages(snapshot: Snapshot, encoder: QueryEncoder, texts: Sequence[str]) -> list[list[_Passage]]:
    ids_QK = snapshot.search(encoder.encode_queries(texts), max(FIRST)).ids_QK
    found: dict[int, _Passage] = {}
    for shard in snapshot.shards:
        ids_N = np.unique(ids_QK[(ids_QK != MISSING) & shard.holds(ids_QK)])
        rows = zip(
            ids_N.tolist(),
            shard.text(ids_N),
            shard.continuation_text(ids_N),
            shard.document_numbers(ids_N),
            strict=True,
        )
        for chunk, text, after, number in rows:
            external_id = snapshot.documents.record(int(number)).external_id
            found[chunk] = _Passage(_spaced(text), _spaced(text + after), external_id)
    return [[found[chunk] for chunk in row if chunk != MISSING] for row in ids_QK.tolist()]


def _judged(question: Question, passages: Sequence[_Passage]) -> dict[tuple[str, str], list[bool]]:
    """Which passages are hits, by definition and by what of them is read."""
    answers = [words for answer in question.answers if (words := _spaced(answer)).strip()]
    runs = set() if question.evidence is None else _runs(_spaced(question.evidence).split())
    judged: dict[tuple[str, str], list[bool]] = {}
    for part in ("chunk", "with_continuation"):
        read = [each.chunk if part == "chunk" else each.both for each in passages]
        judged["answer", part] = [
            question.document in (None, each.document) and any(answer in text for answer in answers)
            for each, text in zip(passages, read, strict=True)
        ]
        if runs:
            size = len(next(iter(runs)))
            judged["evidence", part] = [not runs.isdisjoint(_runs(text.split(), size)) for text in read]
    if question.document is not None:
        judged["document", "chunk"] = [each.document == question.document for each in passages]
    return judged


def _runs(words: Sequence[str], size: int = RUN) -> set[tuple[str, ...]]:
    """Every run of `size` words; the evidence as one run where it has fewer."""
    size = min(size, len(words))
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)} if size else set()


def _spaced(text: str) -> str:
    """The words of `text` as SQuAD compares them, with a blank around each."""
    return f" {normalise(text)} "


def _share(hits: int, count: int) -> dict[str, Any]:
    """A share with Wilson's interval (1927)."""
    share = hits / count
    spread = _Z * sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    middle, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    return {"hits": hits, "share": share, "low": max(0.0, (middle - spread) / scale), "high": (middle + spread) / scale}
