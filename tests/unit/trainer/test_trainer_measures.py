"""What a run reports of its steps, where it writes it, and its picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer_fakes import FakeRetriever, settings, write_corpus
from typer.testing import CliRunner

from openbook_cli.main import app as command
from openbook_core.errors import ConfigError, InputError
from openbook_trainer import app
from openbook_trainer.config import TrainConfig
from openbook_trainer.curves import draw_curves, read_curves
from openbook_trainer.measures import step_flops


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    return app.train(TrainConfig.parse(settings(folder, **changes)))


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_figures_of_a_step(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    changes = {"model": {"gate": "learned"}, "batch": {"vary_phase": False}, "compute": {"peak_tflops": 0.5}}
    summary = run(tmp_path, **changes)
    flops = step_flops(TrainConfig.parse(settings(tmp_path, **changes)))
    found = records(tmp_path)
    assert len(found) == 4
    for record in found:
        # 4 sequences of 32 tokens, all of them labels but the filling of last chunks.
        tokens = record["mfu"] and record["tokens_per_s"] * flops / (record["mfu"] * 0.5e12)
        assert tokens == pytest.approx(round(tokens), rel=1e-6)
        assert 64 <= round(tokens) <= 128
        assert 0 <= record["neighbour_wait_share"] < 1
        assert 1e7 < record["resident_memory_bytes"] <= 2 * psutil.Process().memory_info().rss
        assert set(record["gates"]) == {"2"}
    assert found[0]["gates"]["2"] != 0.0
    assert summary["mfu"] == pytest.approx(4 * flops / (summary["seconds"] * 0.5e12), rel=0.01)


def test_step_flops_by_hand(tmp_path: Path) -> None:
    """The twin's layers multiplied out: width 16, MLP of 64, 257 words, 2 layers, 4 sequences of 32 tokens."""
    matrices = 2 * (16 * 48 + 16 * 16 + 2 * 16 * 64) + 16 * 257
    attention = 2 * 2 * 32 * 32 * 16 * 2
    forward = 2 * 32 * matrices + attention
    values = settings(tmp_path)
    values |= {"retrieval": None, "model": {**values["model"], "cross_attention_layers": [], "mlp": "gelu"}}
    assert step_flops(TrainConfig.parse(values)) == 4 * 3 * forward


def test_the_peak_is_measured_where_it_is_not_given(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    assert 0 < run(tmp_path, steps=2, compute={"peak_tflops": None})["mfu"] < 1


def test_tensorboard_has_the_same_figures_also_after_a_resume(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    changes: dict[str, Any] = {"tensorboard": True, "model": {"gate": "learned"}, "checkpoint": {"every": 2}}
    run(tmp_path, stop_at=3, **changes)
    (tmp_path / "run" / "checkpoints" / "step-00000003" / "state.json").unlink()  # so step 3 comes again
    run(tmp_path, **changes)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for name in ("loss", "gradient_norm", "mfu", "gates/2"):
        expected = [
            (line["step"], line["gates"]["2"] if name == "gates/2" else line[name]) for line in records(tmp_path)
        ]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [1, 2, 3, 4]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-5)
    assert "loss_on" in events.Tags()["scalars"]


def test_tensorboard_that_is_not_installed_names_the_extra(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(ConfigError, match=r"openbook-trainer\[tensorboard\]"):
        run(tmp_path, tensorboard=True)


def test_plot_draws_what_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [
        {"step": 1, "loss": 5.0, "gates": {"2": 0.1}, "mfu": 0.3},
        {"step": 2, "loss": None, "skipped_steps": 1, "gates": {"2": 0.2}, "mfu": 0.3},
        {"step": 2, "loss_off": 4.5, "loss_on": 4.0, "loss_shuffled": None},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    series = read_curves(folder)
    assert series["loss"] == ([1], [5.0])
    assert series["gates/2"] == ([1, 2], [0.1, 0.2])
    assert series["loss_on"] == ([2], [4.0])
    assert "loss_shuffled" not in series
    done = CliRunner().invoke(command, ["train", "plot", str(folder)])
    assert done.output.strip() == str(folder / "curves.png")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_plot_of_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be read .*name the folder of a run"):
        read_curves(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="has no step yet"):
        draw_curves(tmp_path, tmp_path / "curves.png")
    (tmp_path / "metrics.jsonl").write_text('nothing\n{"step": 1, "loss": 2.0}\n')
    with pytest.raises(InputError, match="line 1"):
        read_curves(tmp_path)


def test_train_needs_a_configuration() -> None:
    done = CliRunner().invoke(command, ["train"])
    assert done.exit_code == 2
    assert "--config" in done.output
