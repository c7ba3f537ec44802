"""`openbook score`: what it writes, and what it says about files that are no predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core.errors import InputError
from openbook_trainer.eval.predictions import read_predictions

GOOD = '{"id": "q1", "prediction": "the Nile", "answers": ["Nile", "River Nile"]}'


def test_figures_are_written_as_fractions(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    other = '{"id": 2, "prediction": "blue whale", "answers": ["whale"]}'
    file.write_text(f"{GOOD}\n\n{other}\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["score", str(file), "--json", str(tmp_path / "new" / "figures.json")])
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert figures["count"] == 2
    assert figures["exact_match"] == 0.5
    assert figures["f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["exact_match_interval"] == [0.0, 1.0]
    assert "exact_match" in done.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("\n \n", "holds no rows"),
        (f"{GOOD}\n{{", "line 2: is not JSON"),
        (f'{GOOD}\n["q2"]', "line 2: holds a JSON list"),
        (f"{GOOD}\n\n{GOOD}", "line 3: the id 'q1' was in .*, line 1"),
        ('{"id": "q", "predictions": "x", "answers": ["y"]}', "line 1: .*'predictions'.*did you mean 'prediction'"),
        ('{"id": "q", "prediction": "x", "answer": ["y"]}', "did you mean 'answers'"),
        ('{"id": "q", "prediction": "x"}', "line 1: answers: Field required"),
        ('{"id": "q", "prediction": "x", "answers": []}', "line 1: answers: must be a list of one or more"),
        ('{"id": "q", "prediction": "x", "answers": "y"}', "line 1: answers: must be a list of one or more"),
        ('{"id": "q", "prediction": 3, "answers": ["y"]}', "line 1: prediction: .*string"),
        ('{"id": "q", "prediction": "x", "answers": ["y", 3]}', r"line 1: answers.1: .*string"),
        ('{"id": null, "prediction": "x", "answers": ["y"]}', "line 1: id"),
        ('{"id": true, "prediction": "x", "answers": ["y"]}', "line 1: id"),
    ],
)
def test_what_is_no_predictions_file(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "predictions.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_predictions(file)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such input file"):
        read_predictions(tmp_path / "nothing.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        read_predictions(tmp_path)


def written(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_answers_of_another_file_are_matched_by_id(tmp_path: Path) -> None:
    replies = written(tmp_path / "replies", {"id": "b", "prediction": "Nile"}, {"id": "a", "prediction": "whale"})
    answers = written(tmp_path / "answers", {"id": "a", "answers": ["whale"]}, {"id": "b", "answers": ["Ebro"]})
    done = CliRunner().invoke(
        app, ["score", str(replies), "--answers", str(answers), "--json", str(tmp_path / "figures.json")]
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "figures.json").read_text())["exact_match"] == 0.5


def test_files_of_other_lengths_or_ids_name_the_first_of_them(tmp_path: Path) -> None:
    answers = written(tmp_path / "answers", *({"id": number, "answers": ["x"]} for number in range(6)))
    short = written(tmp_path / "short", {"id": 5, "prediction": "x"})
    message = r"1 predictions and .* 6 questions; without a prediction: 5 \(0, 1, 2, ...\); without answers: none"
    with pytest.raises(InputError, match=message):
        read_predictions(short, answers)
    others = written(tmp_path / "others", *({"id": str(number), "prediction": "x"} for number in range(6)))
    with pytest.raises(InputError, match=r"6 \(0, 1, 2, ...\); without answers: 6 \('0', '1', '2', ...\)"):
        read_predictions(others, answers)


def test_each_of_two_files_has_its_own_keys(tmp_path: Path) -> None:
    replies = written(tmp_path / "replies", {"id": "a", "prediction": "x"})
    both = written(tmp_path / "both", {"id": "a", "prediction": "x", "answers": ["x"]})
    with pytest.raises(InputError, match="both, line 1: .*'answers'"):
        read_predictions(both, written(tmp_path / "answers", {"id": "a", "answers": ["x"]}))
    with pytest.raises(InputError, match="replies, line 1: .*'prediction'"):
        read_predictions(replies, replies)


@pytest.mark.parametrize("row", ["[1]", "{", ""])
def test_a_bad_row_names_the_argument_whose_file_it_is_in(tmp_path: Path, row: str) -> None:
    replies = written(tmp_path / "replies", {"id": "a", "prediction": "x"})
    bad = tmp_path / "bad"
    bad.write_text(row, encoding="utf-8")
    for files, field in (((replies, bad), "answers"), ((bad, replies), "predictions")):
        with pytest.raises(InputError, match="bad") as raised:
            read_predictions(*files)
        assert raised.value.field == field
