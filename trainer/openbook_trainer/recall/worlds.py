"""Worlds that never were: entities of made-up names whose facts are drawn anew for each batch.

No fact can be learnt, so what answers a question is what was read. Names to test with begin with a pair of syllables
that no word of the training has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from random import Random
from typing import Literal

from pydantic import Field, PositiveInt

from openbook_core.config import FrozenConfig
from openbook_core.fingerprint import canonical_json
from openbook_core.tokenizer import Tokenizer
from openbook_trainer.recall.source import Asked, Books, Question
from openbook_trainer.recall.tokens import end_of, train_tokenizer

NAMED = ("capital", "river", "founder", "currency", "language", "dish", "harbour", "patron", "festival")
NUMBERED = ("height", "area", "census")
ATTRIBUTES = NAMED + NUMBERED
FACTS = (
    "The {attribute} of {name} is {value}.",
    "{name} has the {attribute} {value}.",
    "In {name}, the {attribute} is {value}.",
    "As its {attribute}, {name} has {value}.",
)
ASKED = ("What is the {attribute} of {name}?", "Which {attribute} does {name} have?")
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
_RHYMES = ("a", "el", "in", "o", "us")
SYLLABLES = tuple(onset + rhyme for onset in _ONSETS for rhyme in _RHYMES)
_HELD_OUT = 10  # one pair of syllables in so many
_SIMILAR = 0.3  # of the other entities have a name that is alike
# What the passages beside the right one are: another entity's same attribute, another's others, the asked one's others.
_OTHERS = ("same attribute", "other", "own")
_OTHER_WEIGHTS = (0.5, 0.2, 0.3)


class WorldsSettings(FrozenConfig):
    """`facts` is how many each entity has, from least to most."""

    kind: Literal["worlds"] = "worlds"
    facts: tuple[PositiveInt, PositiveInt] = (2, 4)
    vocab_size: PositiveInt = Field(default=1024, description="tokens of the tokenizer, at most")
    sample: PositiveInt = Field(default=4000, description="documents and questions that the tokenizer is trained on")


@dataclass(frozen=True)
class Entity:
    """A name and its facts, value by attribute, in the order of its document; `wording` is a template for each."""

    name: str
    facts: dict[str, str]
    wording: tuple[int, ...]

    def sentences(self) -> list[str]:
        return [
            FACTS[wording].format(attribute=attribute, name=self.name, value=value)
            for wording, (attribute, value) in zip(self.wording, self.facts.items(), strict=True)
        ]

    def document(self) -> dict[str, str]:
        """A row of a JSON Lines file for `openbook db build`."""
        return {"id": self.name, "title": self.name, "text": " ".join(self.sentences())}


@cache
def is_held_out(first: str, second: str) -> bool:
    """Whether a pair of syllables is kept for names to test with."""
    return hashlib.sha256(f"{first}.{second}".encode()).digest()[0] % _HELD_OUT == 0


def training_word(rng: Random, syllables: int) -> str:
    """A word without any pair that is held out."""
    parts = [rng.choice(SYLLABLES)]
    while len(parts) < syllables:
        syllable = rng.choice(SYLLABLES)
        if not is_held_out(parts[-1], syllable):
            parts.append(syllable)
    return "".join(parts).capitalize()


def test_word(rng: Random, syllables: int) -> str:
    """A word that begins with a held-out pair."""
    while True:
        parts = [rng.choice(SYLLABLES) for _ in range(syllables)]
        if is_held_out(parts[0], parts[1]):
            return "".join(parts).capitalize()


test_word.__test__ = False  # type: ignore[attr-defined]


Word = Callable[[Random, int], str]


def draw_value(rng: Random, attribute: str, word: Word) -> str:
    return word(rng, 2) if attribute in NAMED else str(rng.randrange(1000, 10_000))


def draw_facts(rng: Random, attributes: Sequence[str], word: Word) -> dict[str, str]:
    return {attribute: draw_value(rng, attribute, word) for attribute in attributes}


def draw_entity(rng: Random, name: str, attributes: Sequence[str], word: Word) -> Entity:
    """With other facts and another order at each call."""
    shuffled = rng.sample(attributes, len(attributes))
    wording = tuple(rng.randrange(len(FACTS)) for _ in shuffled)
    return Entity(name, draw_facts(rng, shuffled, word), wording)


def similar_name(rng: Random, name: str, word: Word) -> str:
    """Another name that begins or ends as `name` does."""
    while True:
        other, cut = word(rng, 3), len(name) // 2
        mixed = name[:cut] + other[cut:] if rng.random() < 0.5 else other[:cut] + name[cut:]
        if mixed != name:
            return mixed


class Worlds:
    """The source; what it draws is a function of the generator that each call is given."""

    def __init__(self, settings: WorldsSettings, tokenizer: Tokenizer) -> None:
        self.settings, self.tokenizer, self.end = settings, tokenizer, end_of(tokenizer)
        self._word = lru_cache(1 << 16)(lambda word: tuple(tokenizer.encode(word).tolist()))

    @classmethod
    def make(cls, settings: WorldsSettings, seed: int) -> Worlds:
        """With a tokenizer of its own, trained on texts of training names."""
        return cls(settings, train_tokenizer(_texts(settings, Random(f"{seed} tokenizer")), settings.vocab_size))

    @cached_property
    def digest(self) -> str:
        words = [ATTRIBUTES, FACTS, ASKED, SYLLABLES, self.settings.model_dump(mode="json")]
        return hashlib.sha256(canonical_json([words, self.tokenizer.fingerprint.digest]).encode()).hexdigest()

    def questions(self, rng: Random, count: int, k: int, r: int) -> list[Question]:
        """The entities of a batch have equally many facts, so that its passages are about equally long."""
        drawn, facts = [], rng.randint(*self.settings.facts)
        for _ in range(count):
            entity = draw_entity(rng, training_word(rng, 3), rng.sample(ATTRIBUTES, facts), training_word)
            attribute = rng.choice(list(entity.facts))
            drawn.append(self.question(rng, entity, attribute, rng.choice(ASKED), k, r, training_word))
        return drawn

    def held_out(self, rng: Random, count: int, k: int, r: int) -> list[tuple[Question, Question]]:
        pairs = []
        for _ in range(count):
            name = test_word(rng, 3)
            attributes = rng.sample(ATTRIBUTES, rng.randint(*self.settings.facts))
            attribute, wording = rng.choice(attributes), rng.choice(ASKED)
            one, other = two_books(rng, name, attributes)
            pairs.append(
                (
                    self.question(rng, one, attribute, wording, k, r, test_word),
                    self.question(rng, other, attribute, wording, k, r, test_word),
                )
            )
        return pairs

    def books(self, rng: Random, count: int) -> Books:
        """Two worlds of `count` entities with the most facts that one has, two questions on each."""
        names: dict[str, None] = {}
        while len(names) < count:
            names[test_word(rng, 3)] = None
        pairs = [two_books(rng, name, rng.sample(ATTRIBUTES, self.settings.facts[1])) for name in names]
        questions = [
            Asked(
                rng.choice(ASKED).format(attribute=attribute, name=one.name),
                ((one.facts[attribute],), (other.facts[attribute],)),
            )
            for one, other in pairs
            for attribute in rng.sample(list(one.facts), min(2, len(one.facts)))
        ]
        return Books(([one.document() for one, _ in pairs], [other.document() for _, other in pairs]), questions)

    def question(
        self, rng: Random, entity: Entity, attribute: str, wording: str, k: int, r: int, word: Word
    ) -> Question:
        """What `attribute` of `entity` is, its passage among k - 1 others."""
        tokens, spans = self._document(entity)
        asked = spans[list(entity.facts).index(attribute)]
        passages, wrong = [_window(rng, tokens, asked, r)], []
        for _ in range(k - 1):
            kind = rng.choices(_OTHERS, _OTHER_WEIGHTS)[0]
            name = entity.name
            attributes = [each for each in ATTRIBUTES if each not in entity.facts]
            if kind != "own":
                name = similar_name(rng, name, word) if rng.random() < _SIMILAR else word(rng, 3)
            if kind == "same attribute":
                attributes.append(attribute)
            chosen = rng.sample(attributes, min(len(attributes), len(entity.facts)))
            if kind == "same attribute" and attribute not in chosen:
                chosen[0] = attribute
            other = draw_entity(rng, name, chosen, word)
            tokens, spans = self._document(other)
            if attribute in other.facts:
                around = spans[list(other.facts).index(attribute)]
                wrong.append(tuple(self._ids(" " + other.facts[attribute])))
            else:
                around = rng.choice(spans)
            passages.append(_window(rng, tokens, around, r))
        order = rng.sample(range(k), k)
        return Question(
            prompt=self._ids(wording.format(attribute=attribute, name=entity.name)),
            answer=self._ids(" " + entity.facts[attribute]),
            passages=[passages[place] for place in order],
            gold=order.index(0),
            wrong=tuple(wrong),
        )

    def _ids(self, text: str) -> list[int]:
        """The tokenizer's ids, word by word: none of its rules joins words, and most words come back in every batch."""
        first, *rest = text.split(" ")
        ids = list(self._word(first))
        for word in rest:
            ids += self._word(f" {word}")
        return ids

    def _document(self, entity: Entity) -> tuple[list[int], list[tuple[int, int]]]:
        """The document's tokens, and where each of its sentences begins and ends."""
        sentences = entity.sentences()
        tokens: list[int] = []
        spans = []
        for text in (sentences[0], *(f" {sentence}" for sentence in sentences[1:])):
            ids = self._ids(text)
            spans.append((len(tokens), len(tokens) + len(ids)))
            tokens += ids
        return tokens, spans


def two_books(rng: Random, name: str, attributes: Sequence[str]) -> tuple[Entity, Entity]:
    """One name in two worlds, the same attributes, and no value of one in the other."""
    one = draw_entity(rng, name, attributes, test_word)
    while True:
        other = draw_entity(rng, name, attributes, test_word)
        if not set(one.facts.values()) & set(other.facts.values()):
            return one, other


def _window(rng: Random, tokens: list[int], around: tuple[int, int], r: int) -> list[int]:
    """At most r tokens of the document that hold the sentence `around` (or its first r): the document's beginning half
    of the time, else from somewhere before the sentence, also in the middle of another one."""
    least, most = max(0, min(around[1] - r, around[0])), around[0]
    start = 0 if least == 0 and rng.random() < 0.5 else rng.randint(least, most)
    return tokens[start : start + r]


def _texts(settings: WorldsSettings, rng: Random) -> Iterator[str]:
    for _ in range(settings.sample):
        entity = draw_entity(rng, training_word(rng, 3), ATTRIBUTES, training_word)
        yield entity.document()["text"]
        yield rng.choice(ASKED).format(attribute=rng.choice(ATTRIBUTES), name=entity.name)
