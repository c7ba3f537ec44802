"""The shared folder of the tasks' databases."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openbook_cli import task_books
from openbook_cli.alone import alone_in
from openbook_cli.main import app
from openbook_core.errors import ArgumentError, ConflictError
from openbook_database.snapshot import Snapshot
from openbook_trainer.eval.tasks.questions import find_task

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from tasks_support import save_model, write_task

DATA = Path(__file__).parents[2] / "examples"


class StoppedError(Exception):
    pass


def build_in(
    books: Path, monkeypatch: pytest.MonkeyPatch, during: Any, task: str = "factbook", data: Path = DATA
) -> None:
    """A run up to its first build, in whose place `during` is called, with the words of `openbook`."""
    model = books.with_name("model-32")
    if not model.exists():
        save_model(model, 32)

    def run(self: Any, name: str, arguments: list[str]) -> list[str]:
        during(arguments)
        raise StoppedError

    monkeypatch.setattr(task_books.Processes, "run", run)
    monkeypatch.setattr(task_books, "leave_on_signals", lambda: None)
    with pytest.raises(StoppedError):
        task_books.task_books([find_task(task)], data, books / "out", books, str(model), 2).__enter__()


def test_a_book_has_the_chunks_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def during(arguments: list[str]) -> None:
        built = CliRunner().invoke(app, [*arguments, "--dtype", "float32"], catch_exceptions=False)
        assert built.exit_code == 0, built.output

    write_task(tmp_path, {"Nile": "Egypt", "Seine": "France"})
    books = tmp_path / "books"
    build_in(books, monkeypatch, during, "nq", tmp_path)
    (manifest,) = books.glob("*/manifest.json")
    assert Snapshot.open(manifest.parent).manifest.contract.chunk_length == 32


@pytest.mark.parametrize("alone", [["--database", "factbook"], ["--retriever", "127.0.0.1:7000"]])
def test_a_database_and_its_router_go_together(tmp_path: Path, alone: list[str]) -> None:
    words = [
        "eval",
        "tasks",
        "--model",
        "model",
        "--tasks",
        "factbook",
        "--data",
        str(DATA),
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises(ArgumentError, match="--database and --retriever go together") as caught:
        CliRunner().invoke(app, [*words, *alone], catch_exceptions=False)
    assert caught.value.field == "database"
    assert not (tmp_path / "out").exists()


def test_one_run_builds_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def during(arguments: list[str]) -> None:
        with pytest.raises(ConflictError, match="another build works in .*wait for its end, or give another --books"):
            alone_in(tmp_path, "build", "--books").__enter__()

    build_in(tmp_path, monkeypatch, during)
    with alone_in(tmp_path, "build", "--books"):
        pass


def test_documents_are_written_whole_and_only_where_they_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bytes]] = []

    def during(arguments: list[str]) -> None:
        source = Path(arguments[2])
        seen.append((source.stat().st_ino, source.read_bytes()))

    build_in(tmp_path, monkeypatch, during)
    reader = tmp_path / "factbook-2026-02-19-first-2.jsonl"
    os.utime(reader, ns=(1, 1))
    build_in(tmp_path, monkeypatch, during)
    assert seen[0] == seen[1] and reader.stat().st_mtime_ns == 1
    with reader.open("rb") as opened:
        reader.write_bytes(b"other")
        build_in(tmp_path, monkeypatch, during)
        assert opened.read() == b"other"
    assert seen[2][1] == reader.read_bytes() == seen[0][1]
    assert not list(tmp_path.glob("*.tmp"))
