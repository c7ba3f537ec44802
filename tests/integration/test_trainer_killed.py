"""A training process that SIGKILL ends, in a step and between two steps of a save, goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "trainer"))
from trainer_fakes import byte_tokenizer, serve_retriever, settings, write_corpus

from openbook_model import RetroConfig, RetroModel, initialise, save

RUN = "from openbook_trainer.app import main; raise SystemExit(main())"
DIE = "import os, signal; die = lambda: os.kill(os.getpid(), signal.SIGKILL)"
IN_A_STEP = """
from openbook_trainer.loop import Loop
step = Loop._step
Loop._step = lambda self, number, *rest: die() if number == 5 else step(self, number, *rest)
"""
WHILE_SAVING = """
import pathlib
rename = pathlib.Path.rename
pathlib.Path.rename = lambda self, to: die() if self.name == ".step-00000006.draft" else rename(self, to)
"""
WHILE_FILES_ARE_WRITTEN = """
import os
sync = os.fsync
os.fsync = lambda file: die() if "step-00000006.draft" in os.readlink(f"/proc/self/fd/{file}") else sync(file)
"""
BEFORE_THE_STATE = """
from openbook_trainer import saver
write = saver.write_state
saver.write_state = lambda folder, state: die() if state.step == 6 else write(folder, state)
"""
AFTER_THE_NAME = """
import shutil
remove = shutil.rmtree
shutil.rmtree = lambda path, *a, **o: die() if path.name == "step-00000004" else remove(path, *a, **o)
"""
SFT_IN_A_STEP = """
from openbook_trainer.sft.run import _Run
step = _Run._step
_Run._step = lambda self, number: die() if number == 3 else step(self, number)
"""
SFT_WHILE_SAVING = """
from openbook_trainer import one_file
replace, saved = one_file.os.replace, []
one_file.os.replace = lambda draft, path: saved.append(draft) or (die() if len(saved) == 2 else replace(draft, path))
"""
DEATHS = {
    "step": IN_A_STEP,
    "files": WHILE_FILES_ARE_WRITTEN,
    "state": BEFORE_THE_STATE,
    "name": WHILE_SAVING,
    "older": AFTER_THE_NAME,
}
SAME = ("steps", "weights_hash", "loss_on", "loss_off", "loss_shuffled")


@pytest.fixture(scope="module")
def retriever() -> Iterator[str]:
    running = serve_retriever()
    yield running.address
    running.stop(0)


def train(folder: Path, out: str, address: str, *before: str) -> subprocess.CompletedProcess[str]:
    """A training run in a process of its own, which first runs the lines of `before`."""
    changes: dict[str, Any] = {"steps": 8, "out": str(folder / out), "retrieval": {"address": address}}
    return run({**settings(folder, **changes), "checkpoint": {"every": 2, "keep": 1}}, *before)


def run(values: dict[str, Any], *before: str) -> subprocess.CompletedProcess[str]:
    """`openbook_trainer` with these settings."""
    config = Path(f"{values['out']}.yaml")
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-c", "\n".join([*before, RUN]), "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def losses(folder: Path, out: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_killed_run_goes_on_to_the_same_losses(tmp_path: Path, retriever: str) -> None:
    write_corpus(tmp_path)
    straight = train(tmp_path, "straight", retriever)
    assert straight.returncode == 0, straight.stderr
    expected = json.loads(straight.stdout.splitlines()[-1])
    for out, death in DEATHS.items():
        killed = train(tmp_path, out, retriever, DIE, death)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        left = sorted(path.name for path in (tmp_path / out / "checkpoints").glob("step-*"))
        if out == "step":  # that of step 4 may still have been written, and that of step 2 not yet removed
            assert left in (["step-00000002"], ["step-00000004"], ["step-00000002", "step-00000004"])
        else:
            assert left == ["step-00000004", "step-00000006"][: 1 + (out == "older")]
        resumed = train(tmp_path, out, retriever)
        assert resumed.returncode == 0, resumed.stderr
        summary = json.loads(resumed.stdout.splitlines()[-1])
        assert {name: summary[name] for name in SAME} == {name: expected[name] for name in SAME}
        assert losses(tmp_path, out) == losses(tmp_path, "straight")
        assert sorted(losses(tmp_path, out)) == list(range(1, 9))
        assert [path.name for path in (tmp_path / out / "checkpoints").iterdir()] == ["step-00000008"]


def test_a_killed_tuning_goes_on_to_the_same_adapter(tmp_path: Path) -> None:
    model = RetroModel(RetroConfig(vocab_size=257, hidden_size=16, num_layers=2, num_heads=2, max_positions=256))
    initialise(model, 0)
    byte_tokenizer().save(tmp_path / "tokenizer")
    save(model, tmp_path / "model", tmp_path / "tokenizer")
    rows = [{"question": f"What is {n}?", "answer": f"number {n}"} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [{"path": str(tmp_path / "rows.jsonl"), "format": "pairs", "weight": 1}]
    (tmp_path / "blend.yaml").write_text(yaml.safe_dump({"datasets": sets}))
    values = {
        "task": "sft",
        "model": str(tmp_path / "model"),
        "blend": str(tmp_path / "blend.yaml"),
        "steps": 5,
        "examples": 3,
        "row_tokens": 256,
        "threads": 1,
        "autocast": False,
        "checkpoint_every": 2,
    }
    straight = run({**values, "out": str(tmp_path / "straight")})
    assert straight.returncode == 0, straight.stderr
    for out, death in (("step", SFT_IN_A_STEP), ("saving", SFT_WHILE_SAVING)):
        killed = run({**values, "out": str(tmp_path / out)}, DIE, death)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        resumed = run({**values, "out": str(tmp_path / out)})
        assert resumed.returncode == 0, resumed.stderr
        assert losses(tmp_path, out) == losses(tmp_path, "straight")
        weights = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in (out, "straight")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
