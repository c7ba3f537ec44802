"""Readers of question and answer files, one per format.

- `factbook`: rows with question and old_answer or new_answer (JSON Lines). Options: `edition` old|new, `part`
  train|test|all (two thirds and one third of the countries, by a hash of the name), `kind` people|other|all. The
  field "government type" is left out.
- `pairs`: JSON Lines; options `question` and `answer` name the fields (default "question" and "answer").
- `squad`: SQuAD's JSON; the paragraph is put before the model as the one passage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from openbook_core.errors import ConfigError, InputError, NotFoundError
from openbook_database.streams import read_lines

PEOPLE = ("chief of state", "head of government")
# Extracted by rule, and between editions often only reworded.
LEFT_OUT = "government type"


@dataclass(frozen=True)
class Example:
    """A question, its answer, further spellings of it, and its own passages (None: they are to be retrieved)."""

    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    passages: tuple[str, ...] | None = None


def is_training_country(country: str) -> bool:
    """Whether a country is of the two thirds that may be trained on."""
    return int(sha256(country.encode()).hexdigest(), 16) % 3 != 0


def _factbook(path: str, options: Mapping[str, str]) -> list[Example]:
    edition = _option(options, "edition", ("old", "new"))
    part, kind = (
        _option(options, "part", ("train", "test", "all")),
        _option(options, "kind", ("all", "people", "other")),
    )
    found = []
    for place, row in _rows(path):
        if part != "all" and is_training_country(_text(row, "country", place)) != (part == "train"):
            continue
        if row.get("field") == LEFT_OUT:
            continue
        if kind != "all" and (row.get("field") in PEOPLE) != (kind == "people"):
            continue
        answer = _text(row, f"{edition}_answer", place)
        aliases = tuple(row.get(f"{edition}_aliases", ()))
        found.append(Example(_text(row, "question", place), answer, aliases))
    return _some(found, path)


def _pairs(path: str, options: Mapping[str, str]) -> list[Example]:
    question, answer = options.get("question", "question"), options.get("answer", "answer")
    return _some([Example(_text(row, question, at), _text(row, answer, at)) for at, row in _rows(path)], path)


def _squad(path: str, options: Mapping[str, str]) -> list[Example]:
    found = []
    file = _existing(path)
    try:
        articles = json.loads(b"\n".join(read_lines(file)))["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: is not SQuAD's JSON ({error!r})", field="blend") from error
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                if answers:
                    found.append(Example(asked["question"], answers[0], answers, (paragraph["context"],)))
    return _some(found, path)


READERS: dict[str, Callable[[str, Mapping[str, str]], list[Example]]] = {
    "factbook": _factbook,
    "pairs": _pairs,
    "squad": _squad,
}


def _existing(path: str) -> Path:
    file = Path(os.path.expandvars(path)).expanduser()
    if not file.is_file():
        raise NotFoundError(f"{path} of the blend is missing (looked for {file})", field="blend")
    return file


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    file = _existing(path)
    for number, line in enumerate(read_lines(file), start=1):
        try:
            yield f"{file}, line {number}", json.loads(line)
        except ValueError as error:
            raise InputError(f"{file}, line {number}: no JSON ({error})", field="blend") from error


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: has no text in field {name!r}; mend or leave out the row", field="blend")
    return value.strip()


def _option(options: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    value = options.get(name, allowed[0])
    if value not in allowed:
        raise ConfigError(f"option {name} is {value!r}; it may be {', '.join(allowed)}", field=f"options.{name}")
    return value


def _some(found: list[Example], path: str) -> list[Example]:
    if not found:
        raise InputError(f"{path} has no example that its options let through", field="blend")
    return found
