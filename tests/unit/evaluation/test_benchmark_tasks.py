"""The script behind docs/results/tasks.json, with the runs of `openbook eval tasks` replaced by ready figures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
LORA = ROOT / "docs" / "results" / "factbook-lora.json"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imported as the script imports it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tasks

    return tasks


def test_a_quick_run_is_merged_with_the_factbook_s(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = json.loads(LORA.read_text(encoding="utf-8"))
    commands: list[list[str]] = []
    trained: list[list[str]] = []

    def run(_: Any, __: str, arguments: list[str]) -> list[str]:
        if arguments[0] == "train":
            trained.append(arguments)
            return [json.dumps({"steps": 3})]
        commands.append(arguments)
        options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
        kind = "tuned" if "--adapter" in options else "bare"
        tasks = dict.fromkeys(options["--tasks"].split(","), lora[kind]["tasks"]["factbook@2015-11-18"])
        Path(options["--json"]).write_text(
            json.dumps({**lora[kind], "sides": ["closed-book", "off", "on"], "tasks": tasks}), encoding="utf-8"
        )
        return []

    @contextmanager
    def served(_: Path, years: tuple[str, ...]) -> Iterator[tuple[Any, str]]:
        with module.Processes(tmp_path / "logs") as processes:
            yield processes, f"router of {years}"

    monkeypatch.setattr(module.Processes, "run", run)
    monkeypatch.setattr(module, "served", served)
    monkeypatch.setenv("OPENBOOK_DATA", str(tmp_path))
    monkeypatch.setattr(module, "leave_on_signals", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tasks.py", "--quick", "--workdir", str(tmp_path)])
    module.main()
    assert [("--adapter" in each, "--limit-documents" in each) for each in commands] == [
        (False, True),
        (True, True),
        (False, True),
    ]
    assert os.path.relpath(tmp_path / "run" / "model", ROOT) in commands[-1]
    assert "retrieval.address=router of ('2015',)" in trained[0]
    result = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    for kind, name in (("bare", "bare"), ("adapter", "tuned")):
        found = result[kind]["tasks"]
        assert list(found) == ["nq", "nq-open", "squad", *module.FACTBOOK]
        assert all(found[task] == lora[name]["tasks"][task] for task in module.FACTBOOK)
        assert (tmp_path / f"tasks-{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert list(result["retrofit"]["tasks"]) == ["nq", "nq-open", "squad"]
    assert result["retrofit"]["training"] == {"steps": 3}
    assert (tmp_path / "tasks-retrofit.png").is_file()


def test_figures_of_other_weights_are_not_merged(module: ModuleType) -> None:
    lora = json.loads(LORA.read_text(encoding="utf-8"))
    asked = {"bare": lora["bare"], "adapter": {**lora["tuned"], "weights_hash": "another"}}
    with pytest.raises(ValueError, match="adapter: the factbook was asked of other weights"):
        module.with_factbook(asked, lora)
