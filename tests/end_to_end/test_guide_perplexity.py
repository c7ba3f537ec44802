"""The perplexity guide's commands, run as written but for the ports, the folder and the sizes."""

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
SMALLER = {
    "--limit-tokens 20000": "--limit-tokens 700",
    "--limit-tokens 2000": "--limit-tokens 200",
    "--limit-documents 20": "--limit-documents 2 --dtype float32",
    "corpus.max_documents=20": "corpus.max_documents=2 --set steps=6 --set evaluation.sequences=2",
    "examples/": f"{ROOT}/examples/",
}


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def test_the_guide(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guides" / "perplexity.md").read_text(encoding="utf-8")
    off, start, on, score = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    ports = {port: free_port() for port in ("7000", "7001")}
    # The shipped recipe's sources and retriever are its own settings, so they are given again.
    sources = f"corpus.sources=[{{path: {ROOT}/examples/factbook/2015-11-18.jsonl.zst}}]"
    here = f"--set '{sources}' --set retrieval.address=127.0.0.1:7000 --set corpus.max_documents"

    def adapt(block: str) -> str:
        block = block.replace("--set corpus.max_documents", here)
        for written, smaller in SMALLER.items():
            block = re.sub(rf"(?<![\w/]){re.escape(written)}", lambda _, new=smaller: new, block)
        for port, free in ports.items():
            block = re.sub(rf"(?<=:){port}|(?<=--port ){port}", free, block)
        return block

    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PATH": path}
    output, log = tmp_path / "output", tmp_path / "log"

    def run(block: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", adapt(block)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{done.stderr}\n{log.read_text()}"
        return done.stdout

    with output.open("w") as stdout, log.open("w") as stderr:
        services = subprocess.Popen(
            ["bash", "-ec", adapt(start) + "wait\n"],
            cwd=tmp_path,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            assert "off (gate 0)" in run(off)
            deadline = time.monotonic() + 240
            while output.read_text().count('"address"') < 3:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            assert "shuffled" in run(on)
            assert "exact_match" in run(score)
        finally:
            os.killpg(services.pid, signal.SIGTERM)
            services.wait(30)
    figures = json.loads((tmp_path / "build" / "perplexity.json").read_text())
    assert figures["cross_attention"] == "on"
    assert figures["documents_excluded_for_themselves"] == figures["documents"]
    assert figures["on"]["nats_per_token"] != figures["off"]["nats_per_token"]
    assert json.loads((tmp_path / "build" / "perplexity-off.json").read_text())["on"] is None
    assert json.loads((tmp_path / "build" / "scores.json").read_text())["exact_match"] == 1.0
