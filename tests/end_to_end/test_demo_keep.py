"""`openbook demo --registry redis --keep`: the services and Redis stay up where it says, and answer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from openbook_core.clients import RetrieverClient

ROOT = Path(__file__).parents[2]


def test_the_services_stay_up_and_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "openbook_cli", "demo", "--keep", "--documents", "2", "--questions", "1"]
    command += [
        "--registry",
        "redis",
        "--train-seconds",
        "0",
        "--workdir",
        str(tmp_path / "work"),
        "--json",
        str(tmp_path / "figures.json"),
    ]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=400)
    kept = {
        name: (address, int(pid))
        for name, address, pid in re.findall(r"^(\S+) +(\S+)  \(pid (\d+)\)$", done.stdout, re.M)
    }
    try:
        assert done.returncode == 0
        assert set(kept) == {"redis", "embedder", "shard-0", "shard-1", "router", "generator", "reader"}
        figures = json.loads((tmp_path / "figures.json").read_text())
        second = figures["second_column"]
        assert second["cross_attention"] == "on"
        assert second["weights_hash_before"] == second["weights_hash_after"] != figures["weights_hash_after"]
        assert second["swap"]["live"] == second["snapshots"][1] != figures["swap"]["live"]
        asked = {"messages": [{"role": "user", "content": "What is the capital of Canada?"}], "max_tokens": 4}
        reply = (
            httpx.post(f"{kept['generator'][0]}/v1/chat/completions", json=asked, timeout=60).raise_for_status().json()
        )
        assert reply["retrieval"]["snapshot"] == figures["snapshots"]["2015-11-18"]
        question = {"prompt": second["answers"][0]["question"], "retrieval": {"k": 0}}
        reply = httpx.post(f"{kept['reader'][0]}/v1/completions", json=question, timeout=60).raise_for_status().json()
        assert reply["retrieval"]["snapshot"] == second["snapshots"][0]
        assert reply["retrieval"]["neighbors"]
        assert not reply["retrieval"]["shown"], "nothing of the book is in the prompt"
        with RetrieverClient(kept["router"][0]) as client:
            assert client.search_text("factbook", ["capital"], 1).snapshot == figures["snapshots"]["2015-11-18"]
    finally:
        for _, pid in kept.values():
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and _lives(pid) for _, pid in kept.values()):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
