"""What only the directory can meet: damaged files and files of others."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from openbook_core.errors import (
    ArgumentError,
    CorruptError,
)
from openbook_database.registry import open_registry
from openbook_database.registry.directory import DirectoryRegistry

sys.path.insert(0, str(Path(__file__).parent))
from registry_support import Books, make_live


def test_damaged_files_are_named(books: Books, tmp_path: Path) -> None:
    registry = DirectoryRegistry(tmp_path)
    make_live(registry, books, "old")
    for name in ("control.json", "contract.json", f"snapshots/{books.id('old')}.json"):
        path = tmp_path / "factbook" / name
        whole = path.read_bytes()
        for damaged in (whole[:-9], b"[]", b'{"x": 1}', b""):
            path.write_bytes(damaged)
            with pytest.raises(CorruptError, match=name.replace(".", r"\.")):
                registry.state("factbook")
        path.write_bytes(whole)
    with (tmp_path / "factbook" / "audit.jsonl").open("a") as stream:
        stream.write('{"at": 1.0, "act')
    assert len(registry.audit("factbook")) == 6
    assert json.loads((tmp_path / "factbook" / "control.json").read_text())["epoch"] == 1


def test_files_of_others_in_the_folder_are_no_databases(books: Books, tmp_path: Path) -> None:
    registry = DirectoryRegistry(tmp_path)
    registry.register("factbook", books.old)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    assert [state.control.database for state in registry.list()] == ["factbook"]


def test_a_registry_is_opened_by_its_place(tmp_path: Path) -> None:
    assert isinstance(open_registry(tmp_path), DirectoryRegistry)
    assert isinstance(open_registry(f"file://{tmp_path}"), DirectoryRegistry)
    with pytest.raises(ArgumentError, match="ftp://"):
        open_registry("ftp://host")
