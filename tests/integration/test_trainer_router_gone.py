"""A router that dies under a training run: the message, the checkpoint, and the run that goes on when it is back."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from openbook_core.clients import AdminClient
from openbook_database.snapshot import Snapshot
from openbook_trainer import app, checkpoint
from openbook_trainer.loop import Loop

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "trainer"))
import retriever_support as support
from retriever_support import DATABASE
from trainer_fakes import settings

STEPS = 10
SAME = ("steps", "weights_hash", "loss_on", "loss_off", "loss_shuffled", "snapshot")


def test_a_router_that_is_killed_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = support.build_edition(tmp_path, "one", documents=24)
    embedder = support.start_embedder()
    asking = ("--embedder", embedder.address)
    with support.cluster(tmp_path, tmp_path / "registry", router=asking) as processes:
        address = processes[0].address

        def train(out: str) -> tuple[int, dict[str, Any], str]:
            values = settings(
                tmp_path,
                out=str(tmp_path / out),
                steps=STEPS,
                model={"chunk_length": 32, "max_positions": 128},
                corpus={"sources": [{"path": str(tmp_path / "one.jsonl")}], "tokenizer": str(path / "tokenizer")},
                retrieval={"address": address, "database": DATABASE, "prefetch": 1, "retry_budget": 1},
            )
            config = tmp_path / f"{out}.json"
            config.write_text(json.dumps(values))
            code = app.main(["--config", str(config)])
            said = capsys.readouterr()
            return code, json.loads(said.out.splitlines()[-1]), said.err

        with AdminClient(address) as admin:
            admin.register(DATABASE, str(path))
            support.move(admin, Snapshot.open(path).id)
        code, straight, _ = train("straight")
        assert (code, straight["steps"]) == (0, STEPS)

        step = Loop._step

        def then_kill(self: Loop, number: int, *rest: Any) -> None:
            step(self, number, *rest)
            if number == 1:
                os.kill(processes[0].popen.pid, signal.SIGKILL)
                processes[0].popen.wait()

        with monkeypatch.context() as dying:
            dying.setattr(Loop, "_step", then_kill)
            code, last, error = train("broken")
        found = checkpoint.newest(tmp_path / "broken" / "checkpoints")
        assert found is not None
        assert code == 1 and 2 <= found[1].step < STEPS
        assert f"no neighbours from the retriever at {address}" in error
        assert f"{found[0]} is the checkpoint of step {found[1].step}: run the same command to go on" in error
        assert last["step"] == found[1].step, "every step that was done is in the checkpoint"

        port = address.rpartition(":")[2]
        log = tmp_path / "log.jsonl"
        processes[0] = support.start_process(tmp_path / "registry", log, "--role", "router", "--port", port, *asking)
        code, resumed, _ = train("broken")
        assert code == 0
        assert {name: resumed[name] for name in SAME} == {name: straight[name] for name in SAME}
    embedder.stop(0)
