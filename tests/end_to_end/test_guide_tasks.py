"""The tasks guide's command, run as written but for its folder and sizes, and started again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALLER = {"--limit-documents 20": "--limit-documents 2", "--limit 8": "--limit 2 --max-tokens 4"}


def test_the_guide(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guides" / "tasks.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for written, smaller in {**SMALLER, "--data examples": f"--data {ROOT}/examples"}.items():
        assert written in command
        command = command.replace(written, smaller)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PATH": path}

    def run() -> str:
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "off (gate 0)" in run()
    figures = (tmp_path / "build" / "tasks.json").read_text(encoding="utf-8")
    task = json.loads(figures)["tasks"]["factbook"]
    assert task["sides"]["off"]["count"] == task["questions"] > 0
    assert (tmp_path / "build" / "tasks.png").stat().st_size > 1000
