"""Saves in the background, disks that are full, settings that changed on purpose, checkpoints that do not fit."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception
from trainer_fakes import FakeRetriever, settings, write_corpus

from openbook_core.errors import ConfigError, ConflictError, CorruptError, OpenbookError, UnavailableError
from openbook_trainer import app, checkpoint, saver
from openbook_trainer.config import TrainConfig
from openbook_trainer.loop import Loop
from openbook_trainer.prefetch import Prefetch


def run(folder: Path, allow_changed: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    every = changes.pop("every", 0)
    values = {**settings(folder, **changes), "evaluation": {"sequences": 1}, "checkpoint": {"every": every}}
    return app.train(TrainConfig.parse(values), allow_changed)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())


def test_steps_go_on_while_the_state_before_them_is_written(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of step 2's checkpoint waits until step 4 has changed the weights; what it wrote goes on exactly."""
    write_corpus(tmp_path)
    changed, real, step = threading.Event(), saver.async_save, Loop._step

    def noted(self: Loop, number: int, *rest: Any) -> None:
        step(self, number, *rest)
        if number == 3:
            changed.set()

    def late(*args: Any, **options: Any) -> Any:
        writer = torch.distributed.checkpoint.FileSystemWriter(options.pop("checkpoint_id"))
        write = writer.write_data
        writer.write_data = lambda *a: (changed.wait(60), write(*a))[1]  # type: ignore[method-assign]
        return real(*args, storage_writer=writer, **options)

    with monkeypatch.context() as slow:
        slow.setattr(Loop, "_step", noted)
        slow.setattr(saver, "async_save", late)
        straight = run(tmp_path, every=2)
    assert names(tmp_path) == ["step-00000002", "step-00000004"]
    (tmp_path / "run" / "checkpoints" / "step-00000004" / "state.json").unlink()
    assert run(tmp_path)["weights_hash"] == straight["weights_hash"]


def test_a_full_disk_is_said_at_the_next_step_and_the_older_checkpoint_stays(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    straight = run(tmp_path, out=str(tmp_path / "straight"))
    run(tmp_path, stop_at=1)
    real = os.fsync

    def full(descriptor: int) -> None:
        if ".draft" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OpenbookError, match=r"step 2 could not .* No space left .*step-00000001 stays") as caught:
            run(tmp_path, every=1)
    assert caught.value.field == "out"
    assert names(tmp_path) == ["step-00000001"]
    assert run(tmp_path)["weights_hash"] == straight["weights_hash"]


def test_a_write_that_falls_short_is_said_in_a_line(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's writer has it on a disk that fills up: an error of its own, without the system's."""
    write_corpus(tmp_path)
    written: Future[None] = Future()
    failures = {0: _wrap_exception(RuntimeError("[enforce fail] unexpected pos 704 vs 598\nframe #0: somewhere"))}
    written.set_exception(CheckpointException("write", failures))
    monkeypatch.setattr(saver, "async_save", lambda *args, **options: written)
    with pytest.raises(OpenbookError, match=r"step 4 could not .*unexpected pos 704 vs 598 \(.* MB are free") as caught:
        run(tmp_path)
    assert "\n" not in caught.value.message
    assert names(tmp_path) == []


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    run(tmp_path, stop_at=1)
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(ConflictError, match=r"another run trains in .*run; wait"):
        run(tmp_path)
    assert names(tmp_path) == ["step-00000001"]
    assert run(tmp_path)["steps"] == 4


def test_a_folder_that_cannot_be_is_named(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    (tmp_path / "file").touch()
    for out in ("file", "file/run"):
        with pytest.raises(ConfigError, match=f"out: .*{out} cannot be written to: (File exists|Not a directory)"):
            run(tmp_path, out=str(tmp_path / out))


def test_a_retriever_that_goes_away_leaves_a_checkpoint_of_the_last_step(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    straight = run(tmp_path, out=str(tmp_path / "straight"))
    batches = Loop._batches

    def gone(self: Loop, start: int, end: int) -> Any:
        yield from batches(self, start, 3)
        raise UnavailableError("gone")

    with monkeypatch.context() as away:
        away.setattr(Loop, "_batches", gone)
        with pytest.raises(UnavailableError, match=r"gone\. .*step-00000003 is the checkpoint of step 3"):
            run(tmp_path)
    assert names(tmp_path) == ["step-00000003"]
    assert run(tmp_path)["weights_hash"] == straight["weights_hash"]


def test_sigterm_finishes_the_step_and_saves(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    straight = run(tmp_path, out=str(tmp_path / "straight"))
    step, before = Loop._step, signal.getsignal(signal.SIGTERM)

    def asked(self: Loop, number: int, *rest: Any) -> None:
        if number == 1:
            signal.raise_signal(signal.SIGTERM)
        step(self, number, *rest)

    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings(tmp_path)))
    with monkeypatch.context() as stop:
        stop.setattr(Loop, "_step", asked)
        assert app.main(["--config", str(path)]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert names(tmp_path) == ["step-00000002"]
    assert run(tmp_path)["weights_hash"] == straight["weights_hash"]


def test_a_prefetch_that_waits_heeds_the_request() -> None:
    never = threading.Event()
    asked = threading.Event()

    def items() -> Any:
        asked.set()
        never.wait(60)
        yield 1

    prefetch = Prefetch(items(), 1, asked.is_set)
    assert list(prefetch) == []
    never.set()
    prefetch.close()


def test_changes_that_are_named_go_through_and_are_recorded(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    run(tmp_path, stop_at=1)
    other: dict[str, Any] = {"seed": 4, "optimiser": {"learning_rate": 0.02}}
    with pytest.raises(ConfigError, match=r"seed: now 4, then 3.*add --allow-changed seed") as caught:
        run(tmp_path, ("optimiser.learning_rate",), **other)
    assert "learning_rate" not in caught.value.message
    with pytest.raises(ConfigError, match=r"no such setting; did you mean optimiser\.learning_rate"):
        run(tmp_path, ("optimiser.learning_rat",), **other)
    run(tmp_path, ("optimiser.learning_rate", "seed"), **other, stop_at=2)
    wanted = [
        {"step": 1, "field": "optimiser.learning_rate", "then": 0.01, "now": 0.02},
        {"step": 1, "field": "seed", "then": 3, "now": 4},
    ]
    assert [line for line in records(tmp_path) if "field" in line] == wanted
    found = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert list(found[1].changes) == wanted
    run(tmp_path, **other)  # the checkpoint has them now
    with pytest.raises(ConfigError, match="--allow-changed retrieval.snapshot"):
        run(tmp_path, **other, retrieval={"snapshot": "another"})


def test_changed_documents_are_refused_and_can_be_allowed(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    run(tmp_path, stop_at=1)
    write_corpus(tmp_path, documents=9)
    with pytest.raises(ConfigError, match=r"corpus\.digest: now"):
        run(tmp_path)
    assert run(tmp_path, ("corpus.digest",), stop_at=2)["steps"] == 2


def test_checkpoints_of_another_architecture_and_with_nan(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    run(tmp_path, stop_at=1)
    fields = ("model.hidden_size", "model.head_dim", "model.ffn_hidden_size")
    with pytest.raises(ConfigError, match="does not fit this model"):
        run(tmp_path, fields, model={"hidden_size": 32})
    step = Loop._step

    def spoilt(self: Loop, number: int, *rest: Any) -> None:
        step(self, number, *rest)
        with torch.no_grad():
            next(iter(self.model.parameters())).fill_(float("nan"))
        self._save_now(number + 1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", spoilt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert "step-00000002" in names(tmp_path)
    with pytest.raises(CorruptError, match=r"step-00000002: model\..* holds NaN"):
        run(tmp_path)
