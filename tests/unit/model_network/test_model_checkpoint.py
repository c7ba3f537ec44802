"""Model directories, the weights' digest and the choice of the serving dtype."""

from __future__ import annotations

import errno
import json
import logging
import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_factory import random_model, small_config
from safetensors.torch import load_file, save_file

from openbook_core.errors import ConfigError, ConflictError, CorruptError, InputError, NotFoundError, OpenbookError
from openbook_model.checkpoint import load, save
from openbook_model.finite import is_finite
from openbook_model.hashing import weights_hash
from openbook_model.precision import probe_precision


@pytest.mark.parametrize("settings", [{"gate": "learned"}, {"tied_embeddings": False}, {"cross_attention_layers": ()}])
def test_round_trip(tmp_path: Path, settings: dict[str, object]) -> None:
    model = random_model(small_config(**settings))  # type: ignore[arg-type]
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("template")
    model.save(tmp_path / "model", tmp_path / "tokenizer")
    again = load(tmp_path / "model")
    assert again.config == model.config
    assert weights_hash(again) == weights_hash(model)
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == "template"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    low = load(tmp_path / "model", torch.bfloat16)
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
    save(low, tmp_path / "model")
    assert {parameter.dtype for parameter in load(tmp_path / "model").parameters()} == {torch.float32}


def test_only_a_model_directory_is_replaced(tmp_path: Path) -> None:
    model = random_model(small_config())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(ConflictError, match="not a model directory"):
        save(model, tmp_path / "notes")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    with pytest.raises(NotFoundError, match=r"tokenizer\.json"):
        save(model, tmp_path / "model", tmp_path / "notes")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _change_weights(folder: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, folder / "model.safetensors")


def _change_config(folder: Path, **values: object) -> None:
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | values))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_truncate, CorruptError, "truncated"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), CorruptError, "truncated"),
        (lambda folder: (folder / "model.safetensors").unlink(), NotFoundError, r"model\.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), NotFoundError, r"config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), CorruptError, "not JSON"),
        (
            lambda folder: _change_config(folder, format=None, model_type="bert"),
            InputError,
            "bert.*openbook model convert",
        ),
        (lambda folder: _change_config(folder, format_version=9), InputError, "version 9"),
        (lambda folder: _change_config(folder, model={"vocab_size": 3}), ConfigError, "hidden_size"),
        (lambda folder: _change_weights(folder, "final_norm.weight", None), InputError, r"missing.*final_norm\.weight"),
        (lambda folder: _change_weights(folder, "lm", torch.ones(1)), InputError, "unknown.*lm"),
        (lambda folder: _change_weights(folder, "final_norm.weight", torch.ones(3)), InputError, "shape"),
        (lambda folder: _change_weights(folder, "final_norm.weight", torch.full((32,), torch.nan)), InputError, "NaN"),
    ],
)
def test_spoiled_directories_are_refused(
    tmp_path: Path, spoil: object, error: type[OpenbookError], message: str
) -> None:
    save(random_model(small_config()), tmp_path / "model")
    spoil(tmp_path / "model")  # type: ignore[operator]
    with pytest.raises(error, match=message) as caught:
        load(tmp_path / "model")
    assert caught.value.field


def test_weights_hash_sees_every_change() -> None:
    model = random_model(small_config())
    before = weights_hash(model)
    assert weights_hash(model) == before
    with torch.no_grad():
        model.blocks[3].mlp.down.weight[5, 7] = torch.nextafter(
            model.blocks[3].mlp.down.weight[5, 7], torch.tensor(torch.inf)
        )
    assert weights_hash(model) != before
    assert weights_hash(random_model(small_config()).to(torch.bfloat16)) != before


def test_probe_measures_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "openbook_model.precision"):
        probe = probe_precision()
    faster = all(by["float32"] >= 1.1 * by["bfloat16"] for by in probe.seconds.values())
    assert probe.dtype == (torch.bfloat16 if faster else torch.float32)
    assert set(probe.seconds) == {"decode", "prefill"}
    assert "serving dtype" in caplog.text


def test_a_file_that_cannot_be_written_is_the_systems_error(tmp_path: Path) -> None:
    save(random_model(small_config()), tmp_path / "model")
    before = weights_hash(load(tmp_path / "model"))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors") as caught:
            save(random_model(small_config(), seed=2), tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert caught.value.errno == errno.EFBIG
    assert weights_hash(load(tmp_path / "model")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_found_and_a_sum_that_overflows_is_not(value: float) -> None:
    weights = torch.full((3, 4), 3e38)
    assert is_finite(weights) and not torch.isfinite(weights.sum())
    weights[1, 2] = value
    assert not is_finite(weights)


def test_loading_brings_in_no_compiler() -> None:
    # Its import takes seconds, at every start of a server.
    program = (
        "import sys; from openbook_model import RetroConfig, RetroModel\n"
        "RetroModel.allocate(RetroConfig.parse(dict(vocab_size=8, hidden_size=8, num_layers=1, num_heads=1)))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
