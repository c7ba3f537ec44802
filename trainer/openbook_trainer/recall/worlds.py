"""Worlds that never were: entities of made-up names whose facts are drawn anew for each batch.

No fact can be learnt, so what answers a question is what was read. Names to test with are pairs of syllables that no name
of the training is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from random import Random
from typing import Literal

from pydantic import Field, PositiveInt

from openbook_core.config import FrozenConfig
from openbook_core.errors import ArgumentError
from openbook_core.fingerprint import canonical_json
from openbook_core.tokenizer import Tokenizer
from openbook_trainer.recall.source import Asked, Books, Question
from openbook_trainer.recall.tokens import Words, end_of, train_tokenizer

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
_RHYMES = ("a", "el", "in", "o", "us")
# Names and values have none in common: what could be either is not copied before positions are understood.
_ONSETS = (*"bdfgklmjz", "bl", "br", "dr", "fl", "fr", "gl", "gr", "kl", "kr")
SYLLABLES: tuple[str, ...] = tuple(onset + rhyme for onset in _ONSETS for rhyme in _RHYMES)
VALUE_SYLLABLES: tuple[str, ...] = tuple(onset + rhyme for onset in "nprstvhwy" for rhyme in _RHYMES)
_SYLLABLE_COUNT = 200  # more than any pair of letters that the sentences' own words have
_SYLLABLE = re.compile("|".join(sorted(SYLLABLES, key=len, reverse=True)))
_HELD_OUT = 10  # one pair of syllables in so many
# What the passages beside the right one are, and how often: the asked attribute of another entity, whose name is alike or
# not, or whatever there is about another one.
BESIDE = {"alike": 0.3, "same attribute": 0.5, "other": 0.2}


class WorldsSettings(FrozenConfig):
    """`facts` is how many each entity has, from least to most. One passage says them all: the longest are drawn again."""

    kind: Literal["worlds"] = "worlds"
    facts: tuple[PositiveInt, PositiveInt] = (2, 4)
    questions: PositiveInt = Field(default=4, description="of the same passages in training")
    passage_tokens: PositiveInt = Field(default=64, description="of the databases' passages: the model's chunk length")
    vocab_size: PositiveInt = Field(default=1024, description="tokens of the tokenizer, at most")


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

    def text(self) -> str:
        return " ".join(self.sentences())


@cache
def is_held_out(first: str, second: str) -> bool:
    """Whether a pair of syllables is kept for names to test with."""
    return hashlib.sha256(f"{first}.{second}".encode()).digest()[0] % _HELD_OUT == 0


def training_name(rng: Random) -> str:
    """A pair of syllables that is not held out."""
    return _name(rng, held_out=False)


def test_name(rng: Random) -> str:
    """A held-out pair."""
    return _name(rng, held_out=True)


test_name.__test__ = False  # type: ignore[attr-defined]


def _name(rng: Random, held_out: bool) -> str:
    while True:
        first, second = rng.choice(SYLLABLES), rng.choice(SYLLABLES)
        if is_held_out(first, second) == held_out:
            return (first + second).capitalize()


def syllables_of(name: str) -> list[str]:
    return _SYLLABLE.findall(name.lower())


DrawName = Callable[[Random], str]


def draw_value(rng: Random, attribute: str) -> str:
    if attribute in NUMBERED:
        return str(rng.randrange(1000, 10_000))
    return "".join(rng.choices(VALUE_SYLLABLES, k=2)).capitalize()


def draw_entity(rng: Random, name: str, attributes: Sequence[str]) -> Entity:
    """With other facts and another order at each call."""
    shuffled = rng.sample(attributes, len(attributes))
    wording = tuple(rng.randrange(len(FACTS)) for _ in shuffled)
    return Entity(name, {attribute: draw_value(rng, attribute) for attribute in shuffled}, wording)


def similar_name(rng: Random, name: str, draw: DrawName) -> str:
    """Another name that begins or ends as `name` does."""
    place = rng.randrange(2)
    while True:
        other = draw(rng)
        if other != name and syllables_of(other)[place] == syllables_of(name)[place]:
            return other


class Worlds:
    """The source; what it draws is a function of the generator that each call is given."""

    def __init__(self, settings: WorldsSettings, tokenizer: Tokenizer) -> None:
        self.settings, self.tokenizer, self.end = settings, tokenizer, end_of(tokenizer)
        self._ids = Words(tokenizer)

    @classmethod
    def make(cls, settings: WorldsSettings, seed: int) -> Worlds:
        """With a tokenizer of its own, in which each syllable is a token; no seed changes it."""
        return cls(settings, train_tokenizer(_texts(), settings.vocab_size))

    @cached_property
    def digest(self) -> str:
        words = [ATTRIBUTES, FACTS, ASKED, SYLLABLES, VALUE_SYLLABLES, BESIDE, self.settings.model_dump(mode="json")]
        return hashlib.sha256(canonical_json([words, self.tokenizer.fingerprint.digest]).encode()).hexdigest()

    def questions(self, rng: Random, count: int, k: int, r: int) -> list[Question]:
        """The entities of a batch have equally many facts, so that its passages are about equally long."""
        drawn, facts = [], rng.randint(*self.settings.facts)
        for _ in range(count):
            entity = draw_entity(rng, training_name(rng), rng.sample(ATTRIBUTES, facts))
            attribute = rng.choice(list(entity.facts))
            more = self.settings.questions - 1
            drawn.append(self.question(rng, entity, attribute, rng.choice(ASKED), k, r, training_name, more))
        return drawn

    def held_out(self, rng: Random, count: int, k: int, r: int) -> list[tuple[Question, Question]]:
        pairs = []
        for _ in range(count):
            attributes = rng.sample(ATTRIBUTES, rng.randint(*self.settings.facts))
            attribute, wording = rng.choice(attributes), rng.choice(ASKED)
            one, other = (
                self.question(rng, each, attribute, wording, k, r, test_name)
                for each in two_books(rng, test_name(rng), attributes)
            )
            pairs.append((one, other))
        return pairs

    def books(self, rng: Random, count: int) -> Books:
        """Two worlds of `count` entities, a passage each, and two questions on every one.

        Raises ArgumentError for more entities than there are names to test with.
        """
        names = sum(is_held_out(*pair) for pair in product(SYLLABLES, repeat=2))
        if count > names:
            raise ArgumentError(f"{count} documents; there are {names} names to test with", field="documents")
        pairs: dict[str, tuple[Entity, Entity]] = {}
        while len(pairs) < count:
            name = test_name(rng)
            both = two_books(rng, name, rng.sample(ATTRIBUTES, rng.randint(*self.settings.facts)))
            if all(len(self._ids(each.text())) <= self.settings.passage_tokens for each in both):
                pairs[name] = both
        first, second = ([{"id": name, "text": both[side].text()} for name, both in pairs.items()] for side in (0, 1))
        questions = [
            Asked(
                rng.choice(ASKED).format(attribute=attribute, name=name),
                ((one.facts[attribute],), (other.facts[attribute],)),
            )
            for name, (one, other) in pairs.items()
            for attribute in rng.sample(list(one.facts), min(2, len(one.facts)))
        ]
        return Books((first, second), questions)

    def question(
        self, rng: Random, entity: Entity, attribute: str, wording: str, k: int, r: int, draw: DrawName, more: int = 0
    ) -> Question:
        """What `attribute` of `entity` is, its passage among k - 1 others, and `more` questions on any of the passages: on
        all their facts before one is asked for again."""
        passage, said = self._passage(rng, entity, attribute, r)
        passages, wrong, beside = [passage], [], []
        facts = [(entity, each) for each in said if each != attribute]
        for _ in range(k - 1):
            (kind,) = rng.choices(list(BESIDE), list(BESIDE.values()))
            name = entity.name
            while name == entity.name:
                name = similar_name(rng, name, draw) if kind == "alike" else draw(rng)
            chosen = rng.sample(ATTRIBUTES, len(entity.facts))
            if kind != "other" and attribute not in chosen:
                chosen[0] = attribute
            other = draw_entity(rng, name, chosen)
            about = attribute if kind != "other" else rng.choice(chosen)
            passage, said = self._passage(rng, other, about, r)
            passages.append(passage)
            facts += [(other, each) for each in said]
            beside.append(kind)
            if attribute in said:
                wrong.append(tuple(self._ids(" " + other.facts[attribute])))
        facts = facts or [(entity, attribute)]
        order = rng.sample(range(k), k)
        return Question(
            prompt=self._ids(wording.format(attribute=attribute, name=entity.name)),
            answer=self._ids(" " + entity.facts[attribute]),
            passages=[passages[place] for place in order],
            gold=order.index(0),
            wrong=tuple(wrong),
            beside=tuple(beside),
            more=tuple(
                (
                    self._ids(rng.choice(ASKED).format(attribute=each, name=other.name)),
                    self._ids(" " + other.facts[each]),
                )
                for other, each in (rng.sample(facts, len(facts)) * more)[:more]
            ),
        )

    def _passage(self, rng: Random, entity: Entity, about: str, r: int) -> tuple[list[int], list[str]]:
        """The sentence on `about` and others, as many as fit into r tokens, in the entity's order; and what they are on."""
        sentences = dict(zip(entity.facts, entity.sentences(), strict=True))
        sizes = {each: len(self._ids(f" {sentence}")) for each, sentence in sentences.items()}
        chosen, used = {about}, sizes[about]
        for each in rng.sample(list(sizes), len(sizes)):
            if each != about and used + sizes[each] <= r:
                chosen.add(each)
                used += sizes[each]
        said = [each for each in sentences if each in chosen]
        # A first word has no blank before it, and may have a token more for that.
        while len(ids := self._ids(" ".join(sentences[each] for each in said))) > r and len(said) > 1:
            said.remove(next(each for each in said if each != about))
        return ids[:r], said


def two_books(rng: Random, name: str, attributes: Sequence[str]) -> tuple[Entity, Entity]:
    """One name in two worlds, the same attributes, and no value of one in the other."""
    one = draw_entity(rng, name, attributes)
    while True:
        other = draw_entity(rng, name, attributes)
        if not set(one.facts.values()) & set(other.facts.values()):
            return one, other


def _texts() -> Iterator[str]:
    """Syllables, and every sentence. A tokenizer that saw whole names would join the end of a syllable with the next,
    otherwise in each name, and tell held-out pairs by their not being joined."""
    for syllable in SYLLABLES + VALUE_SYLLABLES:
        word = syllable.capitalize()
        yield from (syllable, word, f" {word}") * _SYLLABLE_COUNT
    for sentence, attribute in product((*FACTS, *ASKED), ATTRIBUTES):
        text = sentence.format(attribute=attribute, name="Ba", value="Ba")
        yield from (text, f" {text}")
