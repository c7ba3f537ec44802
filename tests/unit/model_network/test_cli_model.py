"""The verbs of `openbook model`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from legacy_writer import write_checkpoint
from safetensors.torch import load_file
from typer.testing import CliRunner

from openbook_cli.model import app
from openbook_core.errors import ArgumentError
from openbook_model.checkpoint import load

GOLDEN = Path(__file__).parents[2] / "golden"


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_convert_export_describe(tmp_path: Path) -> None:
    weights = load_file(GOLDEN / "legacy_nvidia" / "weights.safetensors")
    source = write_checkpoint(tmp_path / "released", weights, 2)
    model, report = tmp_path / "model", tmp_path / "report.json"
    told = run("convert", "--from", "megatron-legacy", source, model, "--chunk-length", 8, "--json", report)
    assert "loaded: 136" in told and "new: 0" in told and "layers 6, 9, 12 of 12" in told
    record = json.loads(report.read_text())
    assert len(record["loaded"]) == 136 and record["new"] == record["unexpected"] == record["notes"] == []
    assert all(name.endswith("_extra_state") for name in record["ignored"])
    assert load(model).config.chunk_length == 8
    assert "StableLmForCausalLM" in run("export", "--to", "hf", model, tmp_path / "hf")
    assert (tmp_path / "hf" / "config.json").is_file()
    figures = tmp_path / "figures.json"
    told = run("describe", model, "--gpus", 8, "--json", figures)
    assert "FSDP over 8" in told
    parameters = json.loads(figures.read_text())["parameters"]
    assert parameters["total"] == sum(parameter.numel() for parameter in load(model).parameters())


def test_a_new_encoder_of_a_plain_decoder(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=60, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).bfloat16().save_pretrained(tmp_path / "gpt2")
    options = ["--chunk-length", 8, "--cross-attention-layers", "2,3", "--encoder-width", 16, "--encoder-heads", 2]
    told = run("convert", "--from", "hf", tmp_path / "gpt2", tmp_path / "model", *options)
    assert "blocks.1.gate" in told and "layers 2, 3 of 3" in told
    made = load(tmp_path / "model").config
    assert (made.neighbor_length, made.encoder.hidden_size) == (16, 16)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}  # the source's
    plain = run("convert", "--from", "hf", tmp_path / "gpt2", tmp_path / "plain", "--cross-attention-layers", "none")
    assert "no cross attention" in plain and "new: 0" in plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "--from", "onnx", "a", "b"], "megatron-legacy"),
        (["convert", "--from", "hf", "a", "b", "--dtype", "int8"], "bfloat16"),
        (["convert", "--from", "hf", "a", "b", "--cross-attention-layers", "all"], "with commas"),
        (["convert", "--from", "megatron-core", "a", "b", "--chunk-length", 8], "RETRO parts"),
        (["export", "--to", "onnx", "a", "b"], "hf-retro"),
        (["describe", "nothing"], "no size"),
    ],
)
def test_wrong_arguments(arguments: list[Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        run(*arguments)
