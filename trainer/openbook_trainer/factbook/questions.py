"""The Factbook's questions, each with the line and the part of it that answers it.

The answers were taken from the lines by rule, so each is there word for word; `asked` checks it and leaves out the few
where it is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from openbook_core.tokenizer import Tokenizer
from openbook_trainer.factbook.passages import Line, counter, cut
from openbook_trainer.parts import PEOPLE, is_of_part
from openbook_trainer.rows import read_rows, text_of, texts_of

# What each question asks for, and the line that says it.
FIELDS = {
    "chief of state": "Executive branch",
    "head of government": "Executive branch",
    "capital": "Capital",
    "internet country code": "Internet country code",
    "population": "Population",
    "inflation rate": "Inflation rate (consumer prices)",
    "population growth rate": "Population growth rate",
    "total fertility rate": "Total fertility rate",
    "life expectancy at birth": "Life expectancy at birth",
    "birth rate": "Birth rate",
    "death rate": "Death rate",
    "infant mortality rate": "Infant mortality rate",
    "net migration rate": "Net migration rate",
    "number of airports": "Airports",
    "urban population share": "Urbanization",
    "median age": "Median age",
    "unemployment rate": "Unemployment rate",
}
_VALIDATION_SHARE = 8


@dataclass(frozen=True)
class Asked:
    """A question in one edition: `line.parts[part]` holds `answer`; `other` are the other edition's names for it."""

    id: str
    country: str
    field: str
    question: str
    answer: str
    aliases: tuple[str, ...]
    other: tuple[str, ...]
    changed: bool
    line: Line
    part: int

    @property
    def group(self) -> str:
        """people, capital, code or number."""
        if self.field in PEOPLE:
            return "people"
        return {"capital": "capital", "internet country code": "code"}.get(self.field, "number")


def of_part(country: str, part: str) -> bool:
    """`parts.is_of_part`, whose "train" has here an eighth of its countries apart, as "validation"."""
    if part not in ("train", "validation"):
        return is_of_part(country, part)
    kept = int(sha256(f"validation {country}".encode()).hexdigest(), 16) % _VALIDATION_SHARE == 0
    return is_of_part(country, "train") and kept == (part == "validation")


def asked(file: Path, side: str, lines: Mapping[str, tuple[Line, ...]], part: str) -> Iterator[Asked]:
    """The questions of a file about the countries of a part, with the answers of its `side`, "old" or "new".

    `lines`: those of that edition's documents. A question whose answer is not in its line is left out.
    """
    other = "new" if side == "old" else "old"
    for place, row in read_rows(file):
        country, field = text_of(row, "country", place), text_of(row, "field", place)
        if field not in FIELDS or not of_part(country, part):
            continue
        answer = text_of(row, f"{side}_answer", place)
        found = locate(lines.get(text_of(row, f"{side}_doc", place), ()), field, answer)
        if found is None:
            continue
        yield Asked(
            id=text_of(row, "id", place),
            country=country,
            field=field,
            question=text_of(row, "question", place),
            answer=answer,
            aliases=tuple(texts_of(row, f"{side}_aliases", place)),
            other=tuple(texts_of(row, f"{other}_aliases", place)),
            changed=bool(row.get("changed")),
            line=found[0],
            part=found[1],
        )


def code_of(question_id: str) -> str:
    """The country's code in the ids of its questions and documents."""
    return question_id.split("/")[0]


def database_rows(lines: Mapping[str, tuple[Line, ...]], tokenizer: Tokenizer, limit: int) -> Iterator[dict[str, str]]:
    """Rows with `id` and `text`, the documents of a database: a passage each, of the lines that questions ask for."""
    count, fields = counter(tokenizer), set(FIELDS.values())
    for document, some in lines.items():
        texts = [text for line in some if line.field in fields for text in cut(line, count, limit)]
        yield from ({"id": f"{document}/{number:04d}", "text": text} for number, text in enumerate(texts))


def locate(lines: tuple[Line, ...], field: str, answer: str) -> tuple[Line, int] | None:
    """The line of a field and the first of its parts with the answer: for people, the part of that office."""
    start = f"{field}: " if field in PEOPLE else ""
    for line in lines:
        if line.field == FIELDS[field]:
            for number, part in enumerate(line.parts):
                if part.startswith(start) and place_of(answer, part) is not None:
                    return line, number
    return None


def place_of(answer: str, text: str) -> tuple[int, int] | None:
    """First and last + 1 character of the answer in the text, as a whole word or number."""
    before = r"(?<![\w.,-])" if answer[:1].isdigit() else r"(?<!\w)"
    found = re.search(rf"{before}{re.escape(answer)}(?!\w)(?![.,]\d)", text)
    return found.span() if found else None
