"""The embedder guide's commands, run as written but for the ports, the folder and the sizes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def test_the_guide(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guides" / "embedder.md").read_text(encoding="utf-8")
    start, ask, build, export = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    few = tmp_path / "few.jsonl"
    rows = ({"id": str(number), "text": f"Country {number} has {number * 7919} inhabitants."} for number in range(100))
    few.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert "--texts examples/factbook/2026-02-19.jsonl.zst" in export
    ports = {port: free_port() for port in ("7001", "7002")}

    def adapt(block: str) -> str:
        block = block.replace("--limit-documents 20", "--limit-documents 2")
        block = block.replace("--texts examples/factbook/2026-02-19.jsonl.zst", f"--texts {few}")
        block = block.replace("examples/", f"{ROOT}/examples/")
        return re.sub("7001|7002", lambda found: ports[found[0]], block)

    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PATH": path}

    def run(block: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", adapt(block)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    output, log = tmp_path / "output", tmp_path / "log"
    with output.open("w") as stdout, log.open("w") as stderr:
        service = subprocess.Popen(
            ["bash", "-ec", adapt(start) + "wait\n"],
            cwd=tmp_path,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 240
            while '"address"' not in output.read_text():
                assert service.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            said = json.loads(output.read_text())
            assert said["http"].endswith(ports["7002"])
            assert '"embedding"' in run(ask)
            assert "2 documents" in run(build)
            assert "exported to build/embedder/onnx: " in run(export)
        finally:
            os.killpg(service.pid, signal.SIGTERM)
            service.wait(30)
