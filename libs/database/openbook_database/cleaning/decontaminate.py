"""Decontamination: which documents overlap with evaluation texts.

A document overlaps with an evaluation text where one of these holds, over tokens of the database's tokenizer:

1. *document*: the Jaccard index of the sets of 13-grams of the document and of the text is at least the threshold, 0.8.
   This is RETRO's rule (Borgeaud et al. 2021, section 2.1: "13-gram Jaccard similarity ... 0.8 or higher" between
   training and evaluation documents), computed exactly where RETRO estimates it by MinHash.
2. *passage*: the same measure between the text and some stretch of the document that is as long as the text. Without it
   a paragraph that stands in the middle of a long article would go unseen.
3. *run*: the longest run of tokens that both share is at least `longest_run`, 50.

Texts of fewer than LEAST tokens are not looked for; they are counted. (With 13, SQuAD's answers that are two dates, 14
tokens, removed documents that had no more in common with it than those dates.) A text of up to SHORT tokens is also
looked for as it is tokenised behind a blank.

Memory: about 100 bytes for each token of the evaluation texts, and 34 MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openbook_core.tokenizer import Tokenizer
from openbook_database.cleaning.config import GRAM
from openbook_database.cleaning.evaluation import EvaluationText
from openbook_database.cleaning.grams import Grams, jaccard, longest_common_run

LEAST = 20
SHORT = 128
_TABLE_BITS = 24
_SHIFT = np.uint64(64 - _TABLE_BITS)

Rule = Literal["document", "passage", "run"]


@dataclass(frozen=True)
class Overlap:
    """`item`: the evaluation text; `jaccard`: that of the better of rules 1 and 2; `run`: the longest shared one."""

    item: str
    rule: Rule
    jaccard: float
    run: int


class EvaluationIndex:
    """The n-grams of evaluation texts. `texts` and `short` count those that are looked for and those too short."""

    def __init__(
        self, texts: Iterable[EvaluationText], tokenizer: Tokenizer, threshold: float, longest_run: int | None
    ) -> None:
        self.texts = self.short = 0
        self._threshold, self._run = threshold, longest_run
        self._items: list[str] = []
        self._grams: list[Grams] = []
        for text in texts:
            self._add(text, tokenizer)
        self._sets = [grams.distinct(GRAM) for grams in self._grams]
        self._sizes = np.asarray([len(grams) for grams in self._sets], dtype=np.int64)
        self._index = _Inverted(self._sets)
        self._runs = _Inverted([] if longest_run is None else [grams.hashes(longest_run) for grams in self._grams])

    def _add(self, text: EvaluationText, tokenizer: Tokenizer) -> None:
        plain = text.text.strip()
        tokens = tokenizer.encode(plain)
        if len(tokens) < LEAST:
            self.short += 1
            return
        self.texts += 1
        for variant in [tokens, tokenizer.encode(" " + plain)][: 2 if len(tokens) <= SHORT else 1]:
            self._items.append(text.item)
            self._grams.append(Grams(variant))

    def find(self, tokens: NDArray[Any]) -> Overlap | None:
        """The first evaluation text (in the files' order) that the document `tokens` [N] overlaps with."""
        document = Grams(tokens)
        hashes = document.hashes(GRAM)
        counts = np.bincount(self._index.owners(hashes), minlength=len(self._items))
        if not counts.any():
            return None
        similar = counts >= self._threshold * self._sizes
        candidates = np.flatnonzero(similar)
        runs = np.empty(0, np.int64)
        if self._run is not None:
            runs = self._runs.owners(document.hashes(self._run))
            candidates = np.union1d(candidates, runs)
        for text in candidates.tolist():
            grams = self._grams[text]
            whole = jaccard(np.unique(hashes), self._sets[text]) if similar[text] else 0.0
            part = passage_jaccard(hashes, self._sets[text], grams.tokens - GRAM + 1, self._threshold)
            overlaps = max(whole, part) >= self._threshold
            if overlaps or text in runs:
                rule: Rule = "run" if not overlaps else "document" if whole >= self._threshold else "passage"
                return Overlap(self._items[text], rule, max(whole, part), longest_common_run(document, grams))
        return None


def passage_jaccard(hashes: NDArray[np.uint64], wanted: NDArray[np.uint64], length: int, threshold: float) -> float:
    """The highest Jaccard index of the sorted set `wanted` and a stretch of `length` of a document's n-grams `hashes`
    [G]; 0 where no stretch can reach `threshold`."""
    length = min(length, len(hashes))
    inside = np.isin(hashes, wanted)
    sums = np.concatenate([[0], np.cumsum(inside)])
    starts = np.flatnonzero(sums[length:] - sums[:-length] >= threshold * len(wanted))
    if not len(starts):
        return 0.0
    first, last = int(starts[0]), int(starts[-1])
    grams = hashes[first : last + length].tolist()
    shared = inside[first : last + length].tolist()
    seen: Counter[int] = Counter()
    both, best = 0, 0.0
    for place, gram in enumerate(grams):
        seen[gram] += 1
        both += shared[place] and seen[gram] == 1
        if place >= length:
            old = grams[place - length]
            seen[old] -= 1
            if not seen[old]:
                del seen[old]
                both -= shared[place - length]
        if place >= length - 1:
            best = max(best, both / (len(seen) + len(wanted) - both))
    return best


class _Inverted:
    """From a hash to the sets that hold it."""

    def __init__(self, sets: Sequence[NDArray[np.uint64]]) -> None:
        sets = [np.unique(part) for part in sets]
        hashes = np.concatenate([np.empty(0, np.uint64), *sets])
        order = np.argsort(hashes, kind="stable")
        self._keys, starts = np.unique(hashes[order], return_index=True)
        self._starts = np.append(starts, len(hashes))
        self._owners = np.repeat(np.arange(len(sets)), [len(part) for part in sets])[order]
        # Most of a clean document's runs are turned away here, without a search.
        self._table = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        self._table[self._keys >> _SHIFT] = True

    def owners(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The sets that hold one of `hashes`, once for each different hash that they hold."""
        hashes = np.unique(hashes[self._table[hashes >> _SHIFT]])
        if not len(hashes):
            return np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self._keys, hashes), len(self._keys) - 1)
        places = places[self._keys[places] == hashes]
        counts = self._starts[places + 1] - self._starts[places]
        first = np.repeat(self._starts[places] - np.cumsum(counts) + counts, counts)
        return self._owners[first + np.arange(len(first))]
