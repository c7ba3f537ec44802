"""The command under torchrun, over gRPC: one and two processes compute the same, and a missing retriever is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "trainer"))
from trainer_fakes import serve_retriever, settings, write_corpus


@pytest.fixture(scope="module")
def retriever() -> Iterator[str]:
    running = serve_retriever()
    yield running.address
    running.stop(0)


def torchrun(folder: Path, processes: int, address: str) -> subprocess.CompletedProcess[str]:
    write_corpus(folder)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings(folder, steps=2, out=str(folder / f"run{processes}"))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "openbook_trainer", "--config", str(config), "--set", f"retrieval.address={address}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_one_and_two_processes_compute_the_same(tmp_path: Path, retriever: str) -> None:
    summaries = []
    for processes in (1, 2):
        done = torchrun(tmp_path, processes, retriever)
        assert done.returncode == 0, done.stderr
        summaries.append(json.loads(done.stdout.splitlines()[-1]))
    for name in ("loss_on", "loss_off", "loss_shuffled"):
        np.testing.assert_allclose(summaries[0][name], summaries[1][name], rtol=1e-5)


def test_missing_retriever(tmp_path: Path) -> None:
    done = torchrun(tmp_path, 1, "127.0.0.1:1")
    assert done.returncode != 0
    assert "error: no neighbours from the retriever at 127.0.0.1:1" in done.stderr
