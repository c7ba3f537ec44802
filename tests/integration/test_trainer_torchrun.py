"""`openbook train` in one and two processes, over gRPC: they compute the same, and what goes wrong is said once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from openbook_model import RetroConfig, RetroModel, initialise, load, save
from openbook_trainer import app, checkpoint
from openbook_trainer.config import TrainConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "trainer"))
from trainer_fakes import serve_retriever, settings, write_corpus

from openbook_trainer.optimiser import is_hidden_matrix

# Python runs a `sitecustomize` that it finds on its path before anything else, here in each process of the run.
FIRST_ENDS = """
import os
if os.environ.get("RANK") == "0":
    from openbook_trainer.loop import Loop
    step = Loop._step
    Loop._step = lambda self, number, *rest: os._exit(7) if number == 2 else step(self, number, *rest)
"""
SECOND_GETS_NO_NEIGHBOURS = """
import os
if os.environ.get("RANK") == "1":
    from openbook_core.errors import UnavailableError
    from openbook_trainer.loop import Loop
    batches = Loop._batches
    def failing(self, start, end):
        for step, batch in enumerate(batches(self, start, end)):
            if step == 2:
                raise UnavailableError("only the second process is cut off")
            yield batch
    Loop._batches = failing
"""
SECOND_IS_KILLED = """
import os, signal
if os.environ.get("RANK") == "1":
    from openbook_trainer.loop import Loop
    step = Loop._step
    def killed(self, number, *rest):
        if number == 2:
            self.saver.finish()
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, number, *rest)
    Loop._step = killed
elif os.environ.get("RANK") == "0":
    from openbook_trainer.loop import Loop
    step = Loop._step
    def finished(self, number, *rest):
        if number == 2:
            self.saver.finish()
        step(self, number, *rest)
    Loop._step = finished
"""
LAUNCHER_IS_TERMINATED = """
import os, signal, time
if os.environ.get("RANK") == "0":
    from openbook_trainer.loop import Loop
    step = Loop._step
    def asking(self, number, *rest):
        step(self, number, *rest)
        if number == 1:
            os.kill(os.getppid(), signal.SIGTERM)
            while not self.asked_to_stop:
                time.sleep(0.01)
    Loop._step = asking
"""


@pytest.fixture(scope="module")
def retriever() -> Iterator[str]:
    running = serve_retriever()
    yield running.address
    running.stop(0)


def train(
    folder: Path, processes: int, address: str, out: str = "run", patch: str = "", **changes: Any
) -> subprocess.CompletedProcess[str]:
    write_corpus(folder)
    (folder / "sitecustomize.py").write_text(patch)
    config = folder / "config.yaml"
    changes["retrieval"] = {"address": address, "retry_budget": 0}
    saves = changes.pop("checkpoint", {})
    config.write_text(yaml.safe_dump({**settings(folder, out=str(folder / out), **changes), "checkpoint": saves}))
    command = [sys.executable, "-m", "openbook_cli", "train", "--config", str(config), "--processes", str(processes)]
    path = os.pathsep.join([str(folder), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def figures(folder: Path, out: str, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The error lines of a run that must have failed without a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error:")]


def test_one_and_two_processes_compute_the_same(tmp_path: Path, retriever: str) -> None:
    summaries = []
    for processes in (1, 2):
        done = train(tmp_path, processes, retriever, f"run{processes}")
        assert done.returncode == 0, done.stderr
        summaries.append(json.loads(done.stdout.splitlines()[-1]))
    for name in ("loss_on", "loss_off", "loss_shuffled"):
        np.testing.assert_allclose(summaries[0][name], summaries[1][name], rtol=1e-5)
    for name in ("gradient_norm", "loss"):
        one, two = (figures(tmp_path, out, name) for out in ("run1", "run2"))
        assert len(one) == 4
        np.testing.assert_allclose(one, two, rtol=1e-4)


def test_muon_and_bfloat16_in_two_processes(tmp_path: Path, retriever: str) -> None:
    """Muon's matrices are whole for it, however they are sharded."""
    changes: dict[str, Any] = {
        "optimiser": {"kind": "muon", "learning_rate": 0.01, "average_decay": 0.5},
        "compute": {"dtype": "bfloat16", "checkpointing": True, "peak_tflops": 1.0},
        "model": {"gate": "learned"},
    }
    done = train(tmp_path, 2, retriever, "run2", **changes)
    assert done.returncode == 0, done.stderr
    changes["retrieval"] = {"address": retriever}
    config = TrainConfig.parse(settings(tmp_path, out=str(tmp_path / "run1"), **changes))
    app.train(config)
    # A product in bfloat16 is right to 2**-8 and rounds otherwise on another processor; norms keep more of that than losses.
    for name, tolerance in (("loss", 1e-3), ("gradient_norm", 2**-8), ("loss_on", 1e-3)):
        one, two = (figures(tmp_path, out, name) for out in ("run1", "run2"))
        np.testing.assert_allclose(one, two, rtol=tolerance)
    first = RetroModel(config.model)
    initialise(first, config.seed)
    one, two = (dict(load(tmp_path / out / "model-average").named_parameters()) for out in ("run1", "run2"))
    for name, parameter in first.named_parameters():
        apart, moved = one[name] - two[name], one[name] - parameter
        if is_hidden_matrix(name, parameter):
            assert float(apart.detach().norm()) < 0.15 * float(moved.detach().norm()), name


def test_a_run_goes_on_with_two_processes_and_again_with_one(tmp_path: Path, retriever: str) -> None:
    for processes, out, stop_at in ((1, "straight", None), (1, "parts", 1), (2, "parts", 3), (1, "parts", None)):
        done = train(tmp_path, processes, retriever, out, stop_at=stop_at, optimiser={"kind": "muon"})
        assert done.returncode == 0, done.stderr
    for name in ("loss", "gradient_norm", "loss_on"):
        straight, parts = (figures(tmp_path, out, name) for out in ("straight", "parts"))
        np.testing.assert_allclose(straight[-1], parts[-1], rtol=1e-4)
    np.testing.assert_allclose(*(figures(tmp_path, out, "loss") for out in ("straight", "parts")), rtol=1e-4)


def test_a_frozen_base_is_sharded_and_resumed_as_one_process_does(tmp_path: Path, retriever: str) -> None:
    write_corpus(tmp_path)
    base = RetroModel(RetroConfig.parse({**settings(tmp_path)["model"], "cross_attention_layers": []}))
    initialise(base, 8)
    save(base, tmp_path / "base", tmp_path / "tokenizer")
    changes: dict[str, Any] = {"model": {"gate": "learned"}, "init": {"from": str(tmp_path / "base")}}
    done = train(tmp_path, 2, retriever, "parts", stop_at=2, **changes)
    assert done.returncode == 0, done.stderr
    for out in ("straight", "parts"):
        here = settings(tmp_path, out=str(tmp_path / out), retrieval={"address": retriever}, **changes)
        app.train(TrainConfig.parse(here))
    for name in ("loss", "gradient_norm"):
        straight, parts = (figures(tmp_path, out, name) for out in ("straight", "parts"))
        np.testing.assert_allclose(straight, parts, rtol=1e-4)
    trained = dict(load(tmp_path / "parts" / "model").named_parameters())
    assert all(torch.equal(value, trained[name]) for name, value in base.named_parameters())
    assert all(bool((value != 0).all()) for name, value in trained.items() if name.endswith(".gate"))


@pytest.mark.parametrize("processes", [1, 2])
def test_missing_retriever(tmp_path: Path, processes: int) -> None:
    done = train(tmp_path, processes, "127.0.0.1:1")
    assert done.returncode == 1, done.stderr
    (line,) = errors(done)
    assert line.startswith("error: no neighbours from the retriever at 127.0.0.1:1")


@pytest.mark.parametrize("processes", [1, 2])
def test_settings_that_cannot_be_used(tmp_path: Path, retriever: str, processes: int) -> None:
    done = train(tmp_path, processes, retriever, model={"vocab_size": 64})
    assert done.returncode == 2, done.stderr
    assert errors(done) == ["error: model.vocab_size 64 is less than the tokenizer's 257"]


def test_failure_of_the_second_process_is_said_by_the_first(tmp_path: Path, retriever: str) -> None:
    done = train(tmp_path, 2, retriever, patch=SECOND_GETS_NO_NEIGHBOURS)
    assert done.returncode == 1, done.stderr
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert errors(done) == [
        f"error: only the second process is cut off. {checkpoint} is the checkpoint of step 2: run the same command to go on"
    ]
    assert len(figures(tmp_path, "run", "loss")) == 2


def test_end_of_the_first_process_is_quiet_in_the_second(tmp_path: Path, retriever: str) -> None:
    done = train(tmp_path, 2, retriever, patch=FIRST_ENDS)
    assert done.returncode == 7, done.stderr
    assert errors(done) == []
    assert len(figures(tmp_path, "run", "loss")) == 2


def test_a_killed_process_is_named_and_the_checkpoint_goes_on(tmp_path: Path, retriever: str) -> None:
    done = train(tmp_path, 2, retriever, patch=SECOND_IS_KILLED, checkpoint={"every": 1})
    assert done.returncode != 0
    assert errors(done), done.stderr
    assert "run the same command to go on" in done.stderr
    assert checkpoint.newest(tmp_path / "run" / "checkpoints") is not None
    again = train(tmp_path, 2, retriever, checkpoint={"every": 1})
    assert again.returncode == 0, again.stderr
    assert len(figures(tmp_path, "run", "loss")) == 4


def test_sigterm_saves_in_every_process(tmp_path: Path, retriever: str) -> None:
    done = train(tmp_path, 2, retriever, patch=LAUNCHER_IS_TERMINATED)
    assert done.returncode == 143, done.stderr
    assert "stopped by SIGTERM after step" in done.stderr
    assert "Traceback" not in done.stderr
    found = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found[1].step == len(figures(tmp_path, "run", "loss"))
    assert 2 <= found[1].step < 4
