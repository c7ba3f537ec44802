"""Single answers as rows, and what they say of each field."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from openbook_trainer.eval.tasks.questions import find_task, read_questions
from openbook_trainer.eval.tasks.task import Question
from openbook_trainer.rows import read_rows

ROOT = Path(__file__).parents[3]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imported as the script imports it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import factbook_answers

    return factbook_answers


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_each_answer_is_judged_and_keeps_what_it_was_judged_by(module: ModuleType, tmp_path: Path) -> None:
    task = "factbook@2015-11-18"
    asked = read_questions(find_task(task, "test"), ROOT / "examples", 3)
    replies = [asked[0].answers[0], (asked[1].other_answers or ("",))[0], "nobody"]

    def passages(question: Question, shown: list[str]) -> dict[str, Any]:
        return {"id": question.id, "shown": shown, "in_passages": True, "in_shown": any("is" in line for line in shown)}

    lines = [["nothing", f"it is {replies[0]}"], [f"it is {asked[1].answers[0]}"], []]
    found = [passages(each, shown) for each, shown in zip(asked, lines, strict=True)]
    write(tmp_path / f"answers/{task}/passages.jsonl", found)
    answers = [
        {"id": each.id, "prediction": reply, "answers": each.answers}
        for each, reply in zip(asked, replies, strict=True)
    ]
    write(tmp_path / f"answers/{task}/off.jsonl", answers)
    packed = tmp_path / "rows.jsonl.zst"
    module.write_rows(packed, module.answer_rows(tmp_path, "tuned", task, ROOT / "examples"))
    rows = [row for _, row in read_rows(packed)]
    assert [(row["right"], row["stale"], row["readable"], row["in_best"]) for row in rows] == [
        (True, False, True, False),
        (False, True, True, True),
        (False, False, False, False),
    ]
    assert module.by_place(rows)["2015-11-18"] == {
        "best line": {"questions": 1, "right": 0.0},
        "another line": {"questions": 1, "right": 1.0},
        "nowhere": {"questions": 1, "right": 0.0},
    }
    for row, question in zip(rows, asked, strict=True):
        assert f"{question.document}".endswith(row["id"].partition("/")[0])
        assert (row["run"], row["task"], row["edition"], row["side"]) == ("tuned", "factbook", "2015-11-18", "off")
        assert row["field"] in ("chief of state", "head of government")
        assert row["answers"] == list(question.answers)
        assert row["other_answers"] == list(question.other_answers or ())


def test_fields_are_compared_question_by_question(module: ModuleType) -> None:
    def row(run: str, id_: str, right: bool, **more: Any) -> dict[str, Any]:
        task = {"run": run, "task": "factbook-fields", "edition": "2015-11-18", "id": id_}
        return {**task, "field": id_.partition("/")[2], "right": right, "stale": False, "readable": right, **more}

    rows = [row("bare", "fr/capital", False), row("bare", "it/capital", True), row("bare", "fr/population", False)]
    rows += [row("tuned", "it/capital", True), row("tuned", "fr/capital", True), row("tuned", "fr/population", False)]
    rows.append(row("bare", "fr/chief of state", True, task="factbook"))
    (fields,) = module.by_field(rows).values()
    assert list(fields) == ["capital", "population", "all"]
    capital = {"questions": 2, "bare": 0.5, "tuned": 1.0, "stale": 0.0, "readable": 1.0}
    assert fields["capital"] == capital
    assert fields["all"]["gain"] == pytest.approx(1 / 3)
    low, high = fields["all"]["gain_interval"]
    assert 0 <= low < fields["all"]["gain"] < high <= 1
    assert list(module.field_lines({"2015-11-18": fields}))[2:4] == [
        "| capital | 2 | 0.500 | 1.000 | 1.000 |",
        "| population | 1 | 0.000 | 0.000 | 0.000 |",
    ]
