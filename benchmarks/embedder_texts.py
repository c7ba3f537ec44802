"""Real texts of known length: pieces of the factbook, cut by the encoder's own tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import ROOT

from openbook_core.tokenizer import Tokenizer
from openbook_embedder.engine import EncoderEngine

SOURCE = ROOT / "examples" / "factbook" / "2015-11-18.jsonl.zst"
CHUNK_TOKENS = 64
SHORTEST, LONGEST = 8, 256


@dataclass(frozen=True)
class Texts:
    """`tokens` of each as the encoder reads them, special tokens included."""

    texts: list[str]
    tokens: list[int]

    def facts(self) -> dict[str, Any]:
        ordered = sorted(self.tokens)
        return {
            "texts": len(ordered),
            "tokens": sum(ordered),
            "shortest": ordered[0],
            "median": ordered[len(ordered) // 2],
            "longest": ordered[-1],
        }


class Pieces:
    """Cuts one text after another out of the documents; none twice."""

    def __init__(self, engine: EncoderEngine, folder: Path) -> None:
        from openbook_trainer.rows import read_rows

        self._engine, self._tokenizer = engine, Tokenizer.load(folder)
        self._documents = (str(row["text"]) for _, row in read_rows(SOURCE))
        self._text, self._offsets, self._next = "", [], 0
        self._special = len(engine.tokenize([""]).ids[0])

    def chunks(self, count: int) -> Texts:
        """Of CHUNK_TOKENS tokens each, or the encoder's longest; a cut inside a word that moves the count is passed over."""
        length = min(CHUNK_TOKENS, self._engine.max_tokens)
        texts: list[str] = []
        while len(texts) < count:
            cut = [self._cut(length) for _ in range(count - len(texts))]
            texts += [text for text, ids in zip(cut, self._engine.tokenize(cut).ids, strict=True) if len(ids) == length]
        return Texts(texts, [length] * count)

    def mixed(self, count: int, seed: int = 0) -> Texts:
        """Lengths spread evenly over SHORTEST to LONGEST, or the encoder's longest, in an order that `seed` gives."""
        longest = min(LONGEST, self._engine.max_tokens)
        lengths = [SHORTEST + place * (longest - SHORTEST) // max(1, count - 1) for place in range(count)]
        random.Random(seed).shuffle(lengths)
        texts = [self._cut(length) for length in lengths]
        return Texts(texts, self._engine.tokenize(texts).counts)

    def _cut(self, length: int) -> str:
        wanted = length - self._special
        while len(self._offsets) - self._next < wanted:
            self._text = next(self._documents)
            self._offsets = self._tokenizer.encode_with_offsets(self._text)[1].tolist()
            self._next = 0
        begin, end = self._offsets[self._next][0], self._offsets[self._next + wanted - 1][1]
        self._next += wanted
        return self._text[begin:end]


def by_length(texts: Sequence[str], ids: Sequence[Sequence[int]]) -> list[int]:
    """Places of the texts, longest first."""
    return sorted(range(len(texts)), key=lambda place: len(ids[place]), reverse=True)
