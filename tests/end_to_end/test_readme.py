"""The README's commands by hand, run as written but for the ports, the folder and the number of documents."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from openbook_database.registry.local_redis import free_port

ROOT = Path(__file__).parents[2]


def blocks() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    by_hand = text.partition("## The same by hand")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", by_hand, re.DOTALL)


def wait_for_lines(path: Path, number: int) -> None:
    """Until `number` services have said that they are ready."""
    deadline = time.monotonic() + 240
    while path.read_text().count('"address"') < number:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.2)


def test_the_commands_by_hand(tmp_path: Path) -> None:
    ports = {port: str(free_port()) for port in ("7000", "7001", "8000")}
    start, live, ask = blocks()

    def adapt(block: str) -> str:
        for port, free in ports.items():
            block = re.sub(rf"(?<=:){port}|(?<=--port ){port}", free, block)
        block = block.replace(". .venv/bin/activate\n", "").replace("examples/", f"{ROOT}/examples/")
        return block.replace("openbook db build", "openbook db build --limit-documents 4 --dtype float32")

    environment = {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    output, log = tmp_path / "output", tmp_path / "log"
    with output.open("w") as stdout, log.open("w") as stderr:
        shell = subprocess.Popen(
            ["bash", "-e"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        try:
            assert shell.stdin is not None
            for block, services in ((start, 4), (live, 5)):
                shell.stdin.write(adapt(block))
                shell.stdin.flush()
                wait_for_lines(output, services)
            question = adapt(ask).replace("Canada", "Algeria")
            done = subprocess.run(
                ["bash", "-ec", question], env=environment, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
            assert "SELLAL" in done.stdout
            assert "off (gate 0)" in done.stdout
        finally:
            os.killpg(shell.pid, signal.SIGTERM)
            shell.wait(30)
