"""What of the passages is put before a small model: the sentences or lines that speak of what is asked.

A model of 135 M parameters reads one line well and four passages badly. The choice is lexical and knows no subject:
words of the question, its pairs of words, the words of the document's title, and a "label: value" whose label speaks
of nothing but what is asked. Chosen on the factbook's edition of 2021, which no reported figure is taken from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from openbook_prompt.passage import Extract, Passage
from openbook_prompt.settings import PromptSettings

_WORD = re.compile(r"[^\W_]+")
_STOP_WORDS = frozenset(
    _WORD.findall(
        "a an the of in on at to for from by with and or is are was were be been do does did has have had who whom "
        "whose what which when where why how it its this that these those there name named give tell me please many "
        "much called"
    )
)
# Lines, clauses after a semicolon, and sentences; a full stop after a short word is an abbreviation.
_BORDER = re.compile(r"\n+|;\s+|(?<=[^\W\d_]{5}[.!?])\s+(?=[A-Z\"'(])")
_HEADING = re.compile(r"^[#\s]+")
_LABEL_BORDER = re.compile(r"[-,;.] ")
_TITLE_WEIGHT, _FOREIGN_TITLE_WEIGHT, _LABEL_WEIGHT, _LENGTH_WEIGHT, _LONG = 2.0, 0.5, 2.0, 0.02, 60


@dataclass
class _Run:
    """Chunks that follow each other in a document: for each its id, its rank, and its text; then the continuation."""

    title: str
    ids: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Segment:
    """A line or sentence of a run, and its first character there."""

    text: str
    start: int


def choose_extracts(question: str, passages: Sequence[Passage], settings: PromptSettings) -> list[Extract]:
    """The `settings.extracts` best segments as "title: text", best first.

    Ties go to the better passage, then to the earlier segment.
    """
    asked = _Question(question)
    runs = _runs(passages)
    candidates = sorted(
        (-asked.score(run.title, segment.text), min(run.ranks), number, segment.start)
        for number, run in enumerate(runs)
        for segment in _segments(run)
    )
    chosen: dict[str, Extract] = {}
    for _, _, number, start in candidates:
        if len(chosen) == settings.extracts:
            break
        run = runs[number]
        segment = next(each for each in _segments(run) if each.start == start)
        short = " ".join(segment.text.split(" ")[: settings.extract_words])
        text = short if short.startswith(run.title) else f"{run.title}: {short}"
        chosen.setdefault(text, Extract(text, *_origin(run, start, start + len(short))))
    return list(chosen.values())


def _origin(run: _Run, start: int, end: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the chunks that the characters [start, end) are from, and ranks of the passages that show them."""
    ids, ranks, position = [], [], 0
    for place, text in enumerate(run.texts):
        if start < position + len(text) and position < end:
            ids.append(run.ids[place])
            ranks.append(run.ranks[min(place, len(run.ranks) - 1)])
        position += len(text)
    return tuple(ids), tuple(dict.fromkeys(ranks))


def _runs(passages: Sequence[Passage]) -> list[_Run]:
    """Passages by rank, with those that continue each other joined, so that a sentence cut by a border is whole."""
    by_id = {passage.chunk_id: rank for rank, passage in enumerate(passages)}
    runs: list[_Run] = []
    placed: set[int] = set()
    for rank in range(len(passages)):
        if rank in placed:
            continue
        first = rank
        while (before := by_id.get(passages[first].chunk_id - 1)) is not None and _follows(passages, before, first):
            first = before
        run, here = _Run(passages[first].title), first
        while True:
            run.ids.append(passages[here].chunk_id)
            run.ranks.append(here)
            run.texts.append(passages[here].text)
            after = by_id.get(passages[here].chunk_id + 1)
            if after is None or not _follows(passages, here, after):
                break
            here = after
        run.ids.append(passages[here].chunk_id + 1)
        run.texts.append(passages[here].continuation)
        placed.update(run.ranks)
        runs.append(run)
    return runs


def _follows(passages: Sequence[Passage], first: int, second: int) -> bool:
    return passages[first].document_id == passages[second].document_id


def _segments(run: _Run) -> list[_Segment]:
    text = "".join(run.texts)
    found, start = [], 0
    for border in [*_BORDER.finditer(text), None]:
        end = border.start() if border else len(text)
        segment = _HEADING.sub("", text[start:end])
        if segment.strip():
            found.append(_Segment(segment.rstrip(), end - len(segment)))
        start = border.end() if border else end
    return found


class _Question:
    """Scores segments against one question."""

    def __init__(self, question: str) -> None:
        self._words = _stems(question)
        self._content = [word for word in dict.fromkeys(self._words) if word not in _STOP_WORDS]

    def score(self, title: str, segment: str) -> float:
        words = _stems(segment)
        title_words = set(_stems(title)) - _STOP_WORDS
        asked = [word for word in self._content if word not in title_words]
        present = set(words)
        pairs = {pair for pair in _pairs(self._words) if _says_something(pair) and not title_words & set(pair)}
        return (
            sum(word in present for word in asked)
            + len(pairs & set(_pairs(words)))
            + _TITLE_WEIGHT * sum(word in title_words for word in self._content)
            - _FOREIGN_TITLE_WEIGHT * len(title_words - set(self._content))
            + _LABEL_WEIGHT * self._label(segment, asked)
            - _LENGTH_WEIGHT * min(len(words), _LONG)
        )

    def _label(self, segment: str, asked: Sequence[str]) -> float:
        """The largest share of the asked words in a label that speaks of nothing else."""
        best = 0.0
        for label in segment.split(": ")[:-1]:
            words = set(_stems(_LABEL_BORDER.split(label)[-1])) - _STOP_WORDS
            if words and asked and words <= set(self._content):
                best = max(best, len(words & set(asked)) / len(asked))
        return best


def _stems(text: str) -> list[str]:
    return [_stem(word) for word in _WORD.findall(text.lower())]


def _stem(word: str) -> str:
    for suffix in ("ies", "es", "s"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)] + ("y" if suffix == "ies" else "")
    return word


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    return list(pairwise(words))


def _says_something(pair: tuple[str, str]) -> bool:
    return not (pair[0] in _STOP_WORDS and pair[1] in _STOP_WORDS)
