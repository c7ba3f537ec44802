"""The shared folder of the tasks' databases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from openbook_cli import task_books
from openbook_cli.alone import alone_in
from openbook_core.errors import ConflictError
from openbook_trainer.eval.tasks.questions import find_task

DATA = Path(__file__).parents[2] / "examples"


class StoppedError(Exception):
    pass


def build_in(books: Path, monkeypatch: pytest.MonkeyPatch, during: Any) -> None:
    """A run up to its first build, in whose place `during` is called."""

    def run(self: Any, name: str, arguments: list[str]) -> list[str]:
        during(Path(arguments[2]))
        raise StoppedError

    monkeypatch.setattr(task_books.Processes, "run", run)
    monkeypatch.setattr(task_books, "leave_on_signals", lambda: None)
    with pytest.raises(StoppedError):
        task_books.task_books([find_task("factbook")], DATA, books / "out", books, "model", 2).__enter__()


def test_one_run_builds_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def during(source: Path) -> None:
        with pytest.raises(ConflictError, match="another build works in .*wait for its end, or give another --books"):
            alone_in(tmp_path, "build", "--books").__enter__()

    build_in(tmp_path, monkeypatch, during)
    with alone_in(tmp_path, "build", "--books"):
        pass


def test_documents_are_written_whole_and_only_where_they_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bytes]] = []

    def during(source: Path) -> None:
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
