"""Each single answer to the factbook's tasks as a row, and what the rows say of each field.

A row: `run` (bare or tuned), `task`, `edition`, `side`, `id`, `field`, `prediction`, `answers` and those of the other
edition, `right` and `stale` (docs/guides/tasks.md), `readable` (an answer is in what was shown), `in_best` (in the best of
the lines that were shown, which stands last) and `in_passages`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zstandard import ZstdCompressor

from openbook_database.files import write_bytes_atomically
from openbook_trainer.eval.editions import judge
from openbook_trainer.eval.intervals import figure
from openbook_trainer.eval.tasks.passages import is_readable
from openbook_trainer.eval.tasks.questions import find_task
from openbook_trainer.eval.tasks.records import Records

SIDE = "off"


def answer_rows(folder: Path, run: str, task: str, data: Path) -> Iterator[dict[str, Any]]:
    """The rows of one task (NAME@EDITION) from the folder of a run of `openbook eval tasks`, in the order of asking."""
    answers = folder / "answers" / task
    found = Records(answers / "passages.jsonl").rows
    questions = {each.id: each for each in find_task(task, "test").questions(data)}
    name, _, edition = task.partition("@")
    for id_, row in Records(answers / f"{SIDE}.jsonl").rows.items():
        question, shown = questions[id_], found[id_]["shown"]
        other = question.other_answers
        assert other is not None
        verdict = judge(row["prediction"], row["answers"], other)
        yield {
            "run": run,
            "task": name,
            "edition": edition,
            "side": SIDE,
            "id": id_,
            "field": id_.partition("/")[2],
            "prediction": row["prediction"],
            "answers": row["answers"],
            "other_answers": other,
            "right": verdict.right,
            "stale": verdict.stale,
            "readable": found[id_]["in_shown"],
            "in_best": bool(shown) and is_readable(question, shown[0]),
            "in_passages": found[id_]["in_passages"],
        }


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON Lines, packed."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, ZstdCompressor(level=19).compress(text.encode()))


def by_field(rows: Sequence[dict[str, Any]], task: str = "factbook-fields") -> dict[str, Any]:
    """For each edition what became of each field, and of `all` together with the interval of the difference.

    Both runs were asked the same questions. `stale` and `readable` are those of the tuned run.
    """
    asked = {(row["run"], row["edition"], row["id"]): row for row in rows if row["task"] == task}
    editions: dict[str, Any] = {}
    for edition in sorted({edition for _, edition, _ in asked}):
        pairs = [
            (row, asked["tuned", edition, id_])
            for (run, of, id_), row in asked.items()
            if (run, of) == ("bare", edition)
        ]
        fields = {name: _compared([pair for pair in pairs if pair[0]["field"] == name]) for name in _fields(pairs)}
        gains = [float(tuned["right"]) - float(bare["right"]) for bare, tuned in pairs]
        editions[edition] = {**fields, "all": {**_compared(pairs), **figure("gain", gains)}}
    return editions


def _fields(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    return sorted({bare["field"] for bare, _ in pairs})


def _compared(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    count = len(pairs)
    return {
        "questions": count,
        "bare": sum(bare["right"] for bare, _ in pairs) / count,
        "tuned": sum(tuned["right"] for _, tuned in pairs) / count,
        "stale": sum(tuned["stale"] for _, tuned in pairs) / count,
        "readable": sum(tuned["readable"] for _, tuned in pairs) / count,
    }


def by_place(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each edition the tuned run's questions by where an answer was shown, and the share that it answered right."""
    editions: dict[str, Any] = {}
    for edition in sorted({row["edition"] for row in rows}):
        asked = [row for row in rows if (row["run"], row["edition"]) == ("tuned", edition)]
        places = {
            "best line": [row for row in asked if row["in_best"]],
            "another line": [row for row in asked if row["readable"] and not row["in_best"]],
            "nowhere": [row for row in asked if not row["readable"]],
        }
        editions[edition] = {
            place: {
                "questions": len(found),
                "right": sum(row["right"] for row in found) / len(found) if found else None,
            }
            for place, found in places.items()
        }
    return editions


def field_lines(fields: dict[str, Any]) -> Iterator[str]:
    """As a table in Markdown, a line for each field; the editions are asked the same questions."""
    heads = "".join(f" {edition}: bare | with the adapter | in what is shown |" for edition in fields)
    yield f"| field | n |{heads}"
    yield "|---|---|" + "---|" * (3 * len(fields))
    for name in next(iter(fields.values())):
        cells = [each[name] for each in fields.values()]
        figures = "".join(f" {each['bare']:.3f} | {each['tuned']:.3f} | {each['readable']:.3f} |" for each in cells)
        yield f"| {name} | {cells[0]['questions']} |{figures}"
