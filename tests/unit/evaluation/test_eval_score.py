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
        ("", "holds no predictions"),
        ("\n \n", "holds no predictions"),
        (f"{GOOD}\n{{", "line 2: is not JSON"),
        (f'{GOOD}\n["q2"]', "line 2: holds a JSON list"),
        (f"{GOOD}\n\n{GOOD}", "line 3: the id 'q1' was on line 1"),
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
