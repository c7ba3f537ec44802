"""A Factbook of fourteen countries in the form of the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zstandard

from openbook_database.testing import write_rows
from openbook_trainer.factbook.source import EDITIONS, LAST

_EUROPE = ("Andorra", "Denmark", "Estonia", "Finland", "Hungary", "Latvia", "Spain")
COUNTRIES = (*_EUROPE, "Canada", "Guinea", "Kenya", "Niger", "Peru", "Togo", "Vietnam")
SURNAMES = ("HARPER", "CARNEY", "KALLAS", "MARIN", "ORBAN", "SELLAL", "KAGAME")


def person(number: int, edition: int, ending: str = "el") -> str:
    return f"President {COUNTRIES[(number + 3) % 14][:4]}{ending} {SURNAMES[(number + edition) % 7]}"


def document(number: int, edition: int) -> dict[str, Any]:
    country = COUNTRIES[number]
    lines = [
        f"# {country}",
        f"{country} - Population: {100 + number + edition},{300 + number} (July 2015 est.)",
        f"{country} - Capital: name: {country[:3]}ville; geographic coordinates: 45 25 N, 75 42 W",
        f"{country} - Executive branch: chief of state: {person(number, edition)} (since 3 May 2001); represented by "
        f"no one; head of government: {person(number, edition, 'in')} (since 4 November 2015); cabinet: none; note: words "
        + "and more words "
        * 20,
        "a line of another form",
    ]
    return {"id": f"factbook/{edition}/c{number}", "country": country, "text": "\n".join(lines)}


def questions(edition: int) -> list[dict[str, Any]]:
    """Rows with the edition's answers as the old ones and those of edition 9 as the new."""
    rows = []
    for number, country in enumerate(COUNTRIES):
        answers = {
            "chief of state": tuple(person(number, each) for each in (edition, 9)),
            "head of government": tuple(person(number, each, "in") for each in (edition, 9)),
            "population": tuple(f"{100 + number + each},{300 + number}" for each in (edition, 9)),
            "capital": (f"{country[:3]}ville",) * 2,
        }
        for field, (old, new) in answers.items():
            asks = f"Who is the {field} of" if field.endswith(("state", "government")) else f"What is the {field} of"
            row = {"id": f"c{number}/{field}", "country": country, "field": field, "question": f"{asks} {country}?"}
            row |= {"old_answer": old, "new_answer": new, "changed": old != new}
            row |= {"old_aliases": [old, old.removeprefix("President ")], "new_aliases": [new]}
            rows.append(row | {"old_doc": f"factbook/{edition}/c{number}", "new_doc": f"factbook/9/c{number}"})
    return rows


def write_factbook(folder: Path) -> Path:
    """The files of both training editions and of the last one."""
    for number, name in enumerate((*EDITIONS, LAST)):
        edition = 9 if name == LAST else number
        _pack(folder / f"{name}.jsonl", [document(country, edition) for country in range(len(COUNTRIES))])
        if name != LAST:
            _pack(folder / f"qa_{name}_{LAST}.jsonl", questions(edition))
    return folder


def _pack(path: Path, rows: list[dict[str, Any]]) -> None:
    packed = zstandard.compress(write_rows(path, rows).read_bytes())
    path.with_name(f"{path.name}.zst").write_bytes(packed)
