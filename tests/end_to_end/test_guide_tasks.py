"""The tasks guide's command, run as written but for its folder and sizes, and started again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALLER = {
    "--limit-documents 20": "--limit-documents 2",
    "--limit 8": "--limit 2 --max-tokens 4",
    "--part test": "--part train --limit-documents 2 --limit 1 --max-tokens 16",
    "--data examples": f"--data {ROOT}/examples",
    "--adapter examples": f"--adapter {ROOT}/examples",
}


def test_the_guide(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guides" / "tasks.md").read_text(encoding="utf-8")
    bare, adapted = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PATH": path}

    def run(command: str) -> str:
        for written, smaller in SMALLER.items():
            assert written in bare + adapted
            command = command.replace(written, smaller)
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "off (gate 0)" in run(bare)
    task = json.loads((tmp_path / "build" / "tasks.json").read_text(encoding="utf-8"))["tasks"]["factbook"]
    assert task["sides"]["off"]["count"] == task["questions"] > 0
    assert (tmp_path / "build" / "tasks.png").stat().st_size > 1000

    assert "stale" in run(adapted)
    figures = json.loads((tmp_path / "build" / "adapter.json").read_text(encoding="utf-8"))
    old, new = figures["tasks"].values()
    assert old["snapshot"] != new["snapshot"]
    assert figures["adapter"]["folder"].endswith("adapters/factbook")
    assert 0 <= new["sides"]["off"]["right"] <= 1
