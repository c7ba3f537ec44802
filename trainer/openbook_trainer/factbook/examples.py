"""Training examples: a question, its answer, and passages of which one holds it, all with names made up.

Each example is a pure function of its random numbers. The country has one new name in question and passages, and so has
each person; figures get other digits. What is learned is to find and to copy, as nothing else is left to be known.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from openbook_trainer.factbook.names import Names, new_digits
from openbook_trainer.factbook.passages import Count, Line, cut, join
from openbook_trainer.factbook.questions import Asked, place_of
from openbook_trainer.parts import PEOPLE

# How often a question is about each group (see `Asked.group`).
GROUPS = {"people": 0.6, "capital": 0.15, "code": 0.05, "number": 0.2}
# What stands beside the right passage: the same field of another country, or the same country's: the rest of the line
# or another one.
_BESIDE = {"country": 0.65, "rest": 0.15, "line": 0.2}
_TRIES = 50


@dataclass(frozen=True)
class Example:
    """`passages[gold]` holds the answer word for word; `wrong` are what the others would answer. `further`: other questions
    that these passages answer, with their answers."""

    question: str
    answer: str
    passages: tuple[str, ...]
    gold: int
    wrong: tuple[str, ...]
    further: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Renamed:
    """A question's answer and the parts of its line with new names, and the names of people and places by the old ones."""

    answer: str
    parts: list[str]
    names: dict[str, str]


@dataclass(frozen=True)
class _Beside:
    """A passage that does not answer the question, what it would answer about its own country, or "", and what else."""

    passage: str
    wrong: str = ""
    further: tuple[tuple[str, str], ...] = ()


class Examples:
    """Makes examples from the questions of some countries. `lines`: all lines of each document, those of `rows`'."""

    def __init__(self, rows: Sequence[Asked], lines: Sequence[Sequence[Line]], count: Count) -> None:
        self._count = count
        self._groups: dict[str, list[Asked]] = defaultdict(list)
        self._fields: dict[str, list[Asked]] = defaultdict(list)
        self._of_line: dict[int, list[Asked]] = defaultdict(list)
        self._documents = {id(line): some for some in lines for line in some}
        self._asked_lines: dict[int, list[Line]] = defaultdict(list)
        for row in rows:
            self._groups[row.group].append(row)
            self._fields[row.field].append(row)
            self._of_line[id(row.line)].append(row)
            self._asked_lines[id(self._documents[id(row.line)])].append(row.line)
        self._weights = {group: weight for group, weight in GROUPS.items() if self._groups[group]}
        self._people = Names(sorted({person_of(row)[1] for row in self._groups["people"]}))
        self._capitals = Names(sorted({row.answer for row in self._groups["capital"]}))
        self._countries = Names(sorted({row.country for row in rows}))

    def draw(self, random: Random, k: int, limit: int) -> Example:
        """An example with k passages of at most `limit` tokens, in any order."""
        for _ in range(_TRIES):
            (group,) = random.choices(list(self._weights), list(self._weights.values()))
            row = random.choice(self._groups[group])
            country = self._countries.new(random, row.country)
            new = self._renamed(random, row, country)
            title = Line(country, row.line.field, ()).title
            gold = self._around(random, title, new.parts, row.part, new.answer, limit)
            if gold is None:
                continue
            beside = [self._beside(random, row, country, title, new.parts, limit) for _ in range(k - 1)]
            passages = [gold, *(each.passage for each in beside)]
            order = random.sample(range(k), k)
            return Example(
                question=_of_country(random, row, country),
                answer=new.answer,
                passages=tuple(passages[place] for place in order),
                gold=order.index(0),
                wrong=tuple(each.wrong for each in beside if each.wrong),
                further=(
                    *self._further(random, row, country, new.names, gold),
                    *(asked for each in beside for asked in each.further),
                ),
            )
        raise AssertionError(f"no passage of {limit} tokens holds an answer")

    def _further(
        self, random: Random, row: Asked, country: str, names: dict[str, str], passage: str
    ) -> list[tuple[str, str]]:
        """Questions on the other offices of the row's line that the passage answers."""
        found = []
        for other in self._of_line[id(row.line)]:
            _, office, said = passage.partition(f"{other.field}: ")
            answer = _replaced(other.answer, names)
            if other.field != row.field and other.field in PEOPLE and office and place_of(answer, said):
                found.append((_of_country(random, other, country), answer))
        return found

    def _renamed(self, random: Random, row: Asked, country: str) -> _Renamed:
        names = {row.line.country: country, row.country: country}
        for other in self._of_line[id(row.line)]:
            if other.field in PEOPLE:
                name = person_of(other)[1]
                names.setdefault(name, self._people.new(random, name))
            elif other.group == "capital":
                names.setdefault(other.answer, self._capitals.new(random, other.answer))
        answer = _replaced(row.answer, names)
        if row.group == "code":
            answer = random.choice((row.answer, "." + "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=2))))
        if row.group != "number":
            parts = [_replaced(part, names | {row.answer: answer}) for part in row.line.parts]
            return _Renamed(answer, parts, names)
        parts = [new_digits(random, _replaced(part, names)) for part in row.line.parts]
        whole = row.line.parts[row.part]
        first, last = place_of(row.answer, whole) or (0, 0)
        answer = new_digits(random, row.answer)
        before, after = (_replaced(text, names) for text in (whole[:first], whole[last:]))
        parts[row.part] = new_digits(random, before) + answer + new_digits(random, after)
        return _Renamed(answer, parts, names)

    def _around(
        self, random: Random, title: str, parts: Sequence[str], part: int, answer: str, limit: int
    ) -> str | None:
        """A passage with the piece of `parts[part]` that holds the answer, and what of the parts around it fits."""
        pieces = cut(Line("", "", (parts[part],)), self._count, limit - self._count(title))
        pieces = [piece.removeprefix(Line("", "", ()).title + " ") for piece in pieces]
        chosen = [piece for piece in pieces if place_of(answer, piece)][:1]
        if not chosen:
            return None
        room = limit - self._count(title) - self._count(f" {chosen[0]};")
        for before in reversed(parts[max(0, part - random.choice((0, 0, 1, 2, 3))) : part]):
            room -= self._count(f" {before};")
            if room < 0:
                break
            chosen.insert(0, before)
        for after in parts[part + 1 :] if len(pieces) == 1 and random.random() < 0.8 else ():
            room -= self._count(f" {after};")
            if room < 0:
                break
            chosen.append(after)
        return join(title, chosen)

    def _beside(
        self, random: Random, row: Asked, country: str, title: str, parts: Sequence[str], limit: int
    ) -> _Beside:
        (kind,) = random.choices(list(_BESIDE), list(_BESIDE.values()))
        if kind == "rest":
            rest = [part for number, part in enumerate(parts) if number != row.part]
            passages = cut(Line("", "", tuple(rest)), self._count, limit - self._count(title))
            passages = [f"{title} {text.removeprefix(Line('', '', ()).title + ' ')}" for text in passages]
            if passages:
                return _Beside(random.choice(passages))
        if kind == "line":
            document = self._documents[id(row.line)]
            some = self._asked_lines[id(document)] if random.random() < 0.6 else document
            line = random.choice(some)
            if line is not row.line:
                parts = [new_digits(random, part.replace(line.country, country)) for part in line.parts]
                passages = cut(Line(country, line.field, tuple(parts)), self._count, limit)
                if passages:
                    return _Beside(random.choice(passages[:3]))
        while True:
            other = random.choice(self._fields[row.field])
            if other.country == row.country:
                continue
            alike = random.random() < 0.35
            its = self._countries.like(random, country) if alike else self._countries.new(random, other.country)
            if its == country:
                continue
            new = self._renamed(random, other, its)
            its_title = Line(its, other.line.field, ()).title
            passage = self._around(random, its_title, new.parts, other.part, new.answer, limit)
            if passage is not None:
                asked = (_of_country(random, other, its), new.answer)
                return _Beside(passage, new.answer, (asked, *self._further(random, other, its, new.names, passage)))


def person_of(row: Asked) -> tuple[str, str]:
    """The title before a name ("Prime Minister", or ""), and the name: the longest alias that ends the answer."""
    names = [each for each in row.aliases if row.answer.endswith(f" {each}")]
    name = max(names, key=len, default=row.answer)
    return row.answer.removesuffix(name).strip(), name


def _of_country(random: Random, row: Asked, country: str) -> str:
    """The question about `country` instead; with "the" before it now and then."""
    article = random.choice(("", "", "", "the "))
    return re.sub(rf"(?:\b[Tt]he )?{re.escape(row.country)}", lambda _: f"{article}{country}", row.question)


def _replaced(text: str, names: dict[str, str]) -> str:
    """`text` with all names replaced at once, longer ones first, as whole words."""
    some = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{some})(?!\w)", lambda found: names[found[0]], text)
