"""Whole runs in this process against a fake retriever: resume, damage, refusals."""

from __future__ import annotations

import errno
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_fakes import FakeRetriever, byte_tokenizer, settings, write_corpus

import openbook_model
from openbook_core.errors import (
    ArgumentError,
    ConfigError,
    CorruptError,
    MismatchError,
    OpenbookError,
    UnavailableError,
)
from openbook_trainer import app, checkpoint, saver
from openbook_trainer.config import TrainConfig
from openbook_trainer.distributed import whole
from openbook_trainer.stopping import StopRequest


def run(folder: Path, out: str = "run", **changes: Any) -> dict[str, Any]:
    return app.train(TrainConfig.parse(settings(folder, out=str(folder / out), **changes)))


def records(folder: Path, out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]


def test_resume_equals_a_straight_run(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    straight = run(tmp_path, "straight")
    assert retriever.held == "snapshot-1", "the run keeps its snapshot loaded"
    half = run(tmp_path, "halves", stop_at=2)
    assert (half["steps"], half["stopped_by"]) == (2, "stop_at")
    resumed = run(tmp_path, "halves")
    same = ("steps", "weights_hash", "loss_on", "loss_off", "loss_shuffled")
    assert {key: resumed[key] for key in same} == {key: straight[key] for key in same}
    assert half["weights_hash"] != straight["weights_hash"]
    losses = [[line["loss"] for line in records(tmp_path, out) if "loss" in line] for out in ("straight", "halves")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_summary_is_the_last_line_and_the_model_loads(
    tmp_path: Path, retriever: FakeRetriever, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path)
    summary = run(tmp_path, steps=2)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary
    model = openbook_model.load(summary["model"])
    assert openbook_model.weights_hash(model) == summary["weights_hash"]
    assert math.log(257) * 0.5 < summary["loss_off"] < math.log(257) * 1.5


def test_micro_batches_do_not_change_the_step(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients before clipping, whose scale a wrong mean over micro-batches would change, and weights after AdamW."""
    write_corpus(tmp_path)
    clip, seen = torch.nn.utils.clip_grad_norm_, []

    def noted(parameters: Any, most: float) -> torch.Tensor:
        parameters = list(parameters)
        seen.append([whole(each.grad).clone() for each in parameters])
        return clip(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    models = [
        openbook_model.load(run(tmp_path, f"micro{micro}", steps=2, batch={"micro": micro})["model"])
        for micro in (1, 2, 4)
    ]
    of_first_step = seen[::2]
    assert len(of_first_step) == 3
    norm = sum(float((each**2).sum()) for each in of_first_step[0]) ** 0.5
    for gradients, model in zip(of_first_step, models, strict=True):
        for found, expected in zip(gradients, of_first_step[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * norm)
        for found, expected in zip(model.parameters(), models[0].parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_damaged_newest_checkpoint_leaves_the_older_one(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    straight = run(tmp_path, "straight")
    config = settings(tmp_path, stop_at=2)
    config["checkpoint"] = {"every": 1, "keep": 2}
    app.train(TrainConfig.parse(config))
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]
    victim = next((folder / "step-00000002").glob("*.distcp"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    found = checkpoint.newest(folder)
    assert found is not None
    assert found[1].step == 1
    assert run(tmp_path)["weights_hash"] == straight["weights_hash"]


def test_killed_while_saving_leaves_the_older_one(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    run(tmp_path, stop_at=1)
    real = saver.async_save

    def killed(*args: Any, **options: Any) -> None:
        real(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(saver, "async_save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=2)
    folder = tmp_path / "run" / "checkpoints"
    assert checkpoint.newest(folder) is not None
    assert [path.name for path in folder.glob("step-*")] == ["step-00000001"]
    monkeypatch.undo()


def test_killed_between_two_names_keeps_the_only_checkpoint(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    config = TrainConfig.parse({**settings(tmp_path), "checkpoint": {"keep": 1}})
    first = app.train(config)
    real = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith(".draft"):
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as dying:
        dying.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            app.train(config)  # nothing is left to do, so it writes the last step's checkpoint once more
    folder = tmp_path / "run" / "checkpoints"
    assert not list(folder.glob("step-*"))
    found = checkpoint.newest(folder)
    assert found is not None
    assert found[1].step == 4
    assert app.train(config)["weights_hash"] == first["weights_hash"]
    assert [path.name for path in folder.iterdir()] == ["step-00000004"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no such key"), 2),
        (ArgumentError("a bad value"), 2),
        (UnavailableError("nobody answers"), 1),
        (OpenbookError("loss is nan"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "out/model"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(app, "train", fail)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings(tmp_path)))
    assert app.main(["--config", str(path)]) == code
    assert capsys.readouterr().err.strip()
    assert app.main(["--config", str(tmp_path)]) == 2


def test_the_second_process_is_quiet_when_the_launcher_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: TrainConfig, allow_changed: list[str], asked_to_stop: StopRequest) -> None:
        with asked_to_stop.heeded():
            signal.raise_signal(signal.SIGTERM)
            raise UnavailableError("another process ended")

    monkeypatch.setattr(app, "train", fail)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings(tmp_path)))
    for rank, said in (("0", "error: another process ended\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert app.main(["--config", str(path)]) == 1
        assert capsys.readouterr().err == said


def test_no_whole_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "step-00000003").mkdir()
    with pytest.raises(CorruptError, match="no checkpoint"):
        checkpoint.newest(tmp_path)


def test_resume_with_other_settings_names_the_differences(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    run(tmp_path, stop_at=1)
    with pytest.raises(ConfigError, match=r"optimiser\.learning_rate: now 0\.02, then 0\.01; seed: now 4, then 3"):
        run(tmp_path, seed=4, optimiser={"learning_rate": 0.02})
    with pytest.raises(ConfigError, match="snapshot"):
        run(tmp_path, retrieval={"snapshot": "another"})


def test_masked_neighbours_of_the_evaluation_are_an_error(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    real = retriever.search_text

    def failing(database: str, texts: list[str], k: int, **options: Any) -> Any:
        if texts == ["probe"]:
            return real(database, texts, k, **options)
        raise UnavailableError("down")

    retriever.search_text = failing  # type: ignore[method-assign,assignment]
    with pytest.raises(UnavailableError, match=r"failed for \d of \d batches of held-out sequences"):
        run(tmp_path, retrieval={"on_failure": "mask", "retry_budget": 0})


def test_batches_that_the_retriever_failed_for_are_masked_and_counted(tmp_path: Path, retriever: FakeRetriever) -> None:
    """Of the 8 batches of 4 steps the first 3 fail, each once: the evaluation's were fetched before."""
    write_corpus(tmp_path)
    real, calls = retriever.search_text, []

    def failing(database: str, texts: list[str], k: int, **options: Any) -> Any:
        calls.append(options["timeout_s"])
        if 3 < len(calls) <= 6:  # the probe and the two batches of the evaluation come first
            raise UnavailableError("down")
        return real(database, texts, k, **options)

    retriever.search_text = failing  # type: ignore[method-assign,assignment]
    settings_of = {"on_failure": "mask", "retry_budget": 0, "deadline_s": 7.5}
    summary = run(tmp_path, batch={"neighbor_drop": 0.0}, retrieval=settings_of)
    assert (summary["steps"], summary["masked_batches"]) == (4, 3)
    lines = [line for line in records(tmp_path, "run") if "loss" in line]
    assert [line["masked_batches"] for line in lines] == [2, 3, 3, 3]
    assert set(calls) == {7.5}, "the deadline of every call"


def test_one_held_out_sequence_has_no_shuffled_loss(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    one, two = (run(tmp_path, f"of{n}", steps=2, evaluation={"sequences": n}) for n in (1, 2))
    assert one["loss_shuffled"] is None
    assert one["loss_on"] != one["loss_off"]
    assert two["loss_shuffled"] not in (None, two["loss_on"])


def test_max_seconds_stops_after_a_step(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    summary = run(tmp_path, steps=1000, max_seconds=0.01)
    assert summary["stopped_by"] == "max_seconds"
    assert summary["steps"] < 1000


def test_corpus_that_the_database_does_not_hold(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    retriever.known = frozenset()  # type: ignore[misc]
    with pytest.raises(ConfigError, match="none of"):
        run(tmp_path)


def test_another_tokenizer_is_named(tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path)
    other = byte_tokenizer()
    other._raw.add_special_tokens(["<|more|>"])
    other.save(tmp_path / "tokenizer")
    with pytest.raises(MismatchError, match=r"vocab_size: corpus\.tokenizer has 258, database 'book' has 257"):
        run(tmp_path, model={"vocab_size": 258})


def test_corpus_shorter_than_a_sequence(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path, documents=2, words=3)
    with pytest.raises(ConfigError, match="a sequence needs 8"):
        run(tmp_path, batch={"chunks": 8})
    write_corpus(tmp_path, documents=9, words=3)
    with pytest.raises(
        ConfigError, match="the held-out part of the corpus has 3 chunks of 8 tokens, a sequence needs 4"
    ):
        run(tmp_path)


def test_retriever_that_is_not_up(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 .*start it \(openbook serve retriever\)"):
        run(tmp_path)
