"""The script behind docs/results/tasks.json, with the runs of `openbook eval tasks` replaced by ready figures."""

from __future__ import annotations

import json
import sys
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

    def run(_: Any, __: str, arguments: list[str]) -> list[str]:
        commands.append(arguments)
        options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
        kind = "tuned" if "--adapter" in options else "bare"
        tasks = dict.fromkeys(options["--tasks"].split(","), lora[kind]["tasks"]["factbook@2015-11-18"])
        Path(options["--json"]).write_text(
            json.dumps({**lora[kind], "sides": ["closed-book", "off", "on"], "tasks": tasks}), encoding="utf-8"
        )
        return []

    monkeypatch.setattr(module.Processes, "run", run)
    monkeypatch.setenv("OPENBOOK_DATA", str(tmp_path))
    monkeypatch.setattr(module, "leave_on_signals", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tasks.py", "--quick", "--workdir", str(tmp_path)])
    module.main()
    assert [("--adapter" in each, "--limit-documents" in each) for each in commands] == [(False, True), (True, True)]
    result = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    for kind, name in (("bare", "bare"), ("adapter", "tuned")):
        found = result[kind]["tasks"]
        assert list(found) == ["nq", "nq-open", "squad", *module.FACTBOOK]
        assert all(found[task] == lora[name]["tasks"][task] for task in module.FACTBOOK)
        assert (tmp_path / f"tasks-{kind}.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_other_weights_are_not_merged(module: ModuleType) -> None:
    lora = json.loads(LORA.read_text(encoding="utf-8"))
    asked = {"bare": lora["bare"], "adapter": {**lora["tuned"], "weights_hash": "another"}}
    with pytest.raises(ValueError, match="adapter: the factbook was asked of other weights"):
        module.with_factbook(asked, lora)
