"""The gate both ways: models with weights set by hand that read their neighbours, and that only look as if."""

from __future__ import annotations

import json
import math
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from book_fake import VOCABULARY, Book, BookServicer, save_reader, serve_book
from eval_support import save_tiny
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_trainer.eval.gate import closed, judge

DOCUMENTS = 24


def topical_texts(prefix: str, documents: int) -> dict[str, str]:
    """Document i is about topic i mod 5, and each topic has four letters of its own."""
    draw = random.Random(prefix)
    topics = [string.ascii_lowercase[4 * topic : 4 * topic + 4] for topic in range(5)]
    return {
        f"{prefix}{number}": "".join(draw.choices(topics[number % 5], k=draw.randint(40, 56)))
        for number in range(documents)
    }


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    book = Book({**topical_texts("d", DOCUMENTS), **topical_texts("x", 18)})
    server = serve_book(BookServicer(book))
    yield server.address
    server.stop(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "topics.jsonl"
    rows = [{"id": name, "text": text} for name, text in topical_texts("d", DOCUMENTS).items()]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def command(model: Path, data: Path, address: str, *more: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output and figures of the command with its gate."""
    figures = model.with_suffix(".json")
    given = ["--model", str(model), "--data", str(data), "--json", str(figures), "--gate", "--device", "cpu"]
    done = CliRunner().invoke(app, ["eval", "perplexity", *given, "--database", "book", "--retriever", address, *more])
    return done.exit_code, done.output, json.loads(figures.read_text())


def test_a_model_that_reads_its_neighbours_passes(tmp_path: Path, data: Path, address: str) -> None:
    save_reader(tmp_path / "reader")
    picture = tmp_path / "plots" / "reader.png"
    code, output, figures = command(tmp_path / "reader", data, address, "--plot", str(picture))
    assert code == 0, output
    assert "gate: passed: this model uses its neighbours" in output
    gate = figures["gate"]
    assert gate["passed"]
    assert len(gate["reasons"]) == 2, "no caution: 24 documents are enough"
    assert figures["off"]["nats_per_token"] == pytest.approx(math.log(VOCABULARY))
    for side in ("on", "half"):
        assert figures[side]["nats_per_token"] < figures["off"]["nats_per_token"] - 0.5
    assert figures["half_minus_on"]["nats_per_token"] == pytest.approx(
        figures["half"]["nats_per_token"] - figures["on"]["nats_per_token"]
    )
    assert figures["overlap"][-1]["on"]["bits_per_byte"] == pytest.approx(figures["on"]["bits_per_byte"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_model_that_wants_neighbours_but_never_reads_them_fails(tmp_path: Path, data: Path, address: str) -> None:
    save_reader(tmp_path / "deaf", said=string.ascii_lowercase[:20])
    code, output, figures = command(tmp_path / "deaf", data, address)
    assert code == 3
    assert "gate: NOT PASSED: this model does not use its neighbours" in output
    assert figures["on_minus_off"]["nats_per_token"] < -0.5, "it is better ON, by far"
    below, above = figures["gate"]["reasons"]
    assert below.endswith(": below -3 standard errors")
    assert above.endswith(": not above 3 standard errors")


def test_a_random_model_fails(tmp_path: Path, data: Path, address: str) -> None:
    save_tiny(tmp_path / "random")
    code, output, figures = command(tmp_path / "random", data, address)
    assert code == 3, output
    assert not figures["gate"]["passed"]


def test_a_gate_of_zero_fails(tmp_path: Path, data: Path) -> None:
    save_tiny(tmp_path / "off", gate="learned")
    code, output, figures = command(tmp_path / "off", data, "127.0.0.1:1")
    assert code == 3, output
    assert figures["gate"]["reasons"] == ["cross_attention: off (gate 0), so OFF, ON and shuffled are the same"]


def test_the_gate_asks_for_a_database(tmp_path: Path, data: Path) -> None:
    save_tiny(tmp_path / "tiny")
    done = CliRunner().invoke(
        app, ["eval", "perplexity", "--model", str(tmp_path / "tiny"), "--data", str(data), "--gate"]
    )
    assert done.exit_code != 0
    assert "--gate needs --database" in str(done.exception)


def difference(value: float, error: float | None) -> dict[str, Any]:
    return {"nats_per_token": value, "nats_per_token_standard_error": error}


@pytest.mark.parametrize(
    ("on_minus_off", "shuffled_minus_on", "passed"),
    [
        ((-0.31, 0.1), (0.31, 0.1), True),
        ((-0.29, 0.1), (0.31, 0.1), False),
        ((-0.31, 0.1), (0.29, 0.1), False),
        ((0.31, 0.1), (0.31, 0.1), False),
        ((-0.31, 0.1), (-0.31, 0.1), False),
        ((0.0, 0.0), (0.0, 0.0), False),
        ((-0.1, 0.0), (0.1, 0.0), True),
    ],
)
def test_three_standard_errors(
    on_minus_off: tuple[float, float], shuffled_minus_on: tuple[float, float], passed: bool
) -> None:
    found = judge(difference(*on_minus_off), difference(*shuffled_minus_on), 100, "document")
    assert found["passed"] is passed
    assert ("does not use" in found["verdict"]) is not passed
    assert len(found["reasons"]) == 2


def test_few_clusters_and_blocks_are_said() -> None:
    good = (difference(-1.0, 0.1), difference(1.0, 0.1))
    assert (
        "few clusters (3): the standard errors are themselves known to about 50%"
        in judge(*good, 3, "document")["reasons"][2]
    )
    assert "blocks are related" in judge(*good, 30, "block")["reasons"][2]
    alone = judge(difference(-1.0, None), difference(1.0, None), 1, "block")
    assert not alone["passed"]
    assert "cannot be shown" in alone["verdict"]
    assert closed("absent")["passed"] is False
