"""Parity with NVIDIA's own Retro code on the golden files (tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openbook_model.convert.megatron import convert_megatron, regroup, target_name
from openbook_model.model import RetroModel, next_token_loss

GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = ["core_gpt2", "core_gpt2_ragged", "core_nvidia", "legacy_nvidia", "legacy_nvidia_ragged", "legacy_gate0"]


class Golden:
    def __init__(self, name: str) -> None:
        self.settings = json.loads((GOLDEN / name / "config.json").read_text())
        self.expected = load_file(GOLDEN / name / "expected.safetensors")
        self.model, self.report = convert_megatron(GOLDEN / name)

    def neighbors(self, key: str) -> Tensor:
        chunks, neighbors = self.settings["num_chunks"], self.settings["num_neighbors"]
        return self.expected[key].view(self.settings["batch_size"], chunks, neighbors, -1)

    def logits(self, key: str = "neighbor_ids") -> Tensor:
        return self.model(self.expected["input_ids"], self.neighbors(key))


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_every_tensor_is_loaded(golden: Golden) -> None:
    names = {name for name, _ in golden.model.named_parameters()}
    assert set(golden.report.loaded) == names
    assert golden.report.new == golden.report.ignored == ()


@torch.no_grad()
def test_logits_and_loss(golden: Golden) -> None:
    logits = golden.logits()
    torch.testing.assert_close(logits, golden.expected["logits"], atol=2e-5, rtol=0)
    torch.testing.assert_close(golden.logits("other_neighbor_ids"), golden.expected["other_logits"], atol=2e-5, rtol=0)
    loss = next_token_loss(logits, golden.expected["labels"])
    torch.testing.assert_close(loss, golden.expected["loss"], atol=2e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_encoder_output(name: str) -> None:
    golden = Golden(name)
    if (
        name == "legacy_gate0"
    ):  # NVIDIA's computes it all the same, ours does not; what it is does not depend on the gate
        weights = golden.model.state_dict()
        golden.model = RetroModel(golden.model.config.model_copy(update={"gate": 1.0}))
        golden.model.load_state_dict(weights)
    captured: list[Tensor] = []
    assert golden.model.encoder is not None
    hook = golden.model.encoder.register_forward_hook(lambda module, inputs, output: captured.append(output))
    golden.logits()
    hook.remove()
    batch, chunks, neighbors = (golden.settings[key] for key in ("batch_size", "num_chunks", "num_neighbors"))
    ours_BLKRE = captured[0].unflatten(0, (batch, chunks, neighbors))
    ours = ours_BLKRE.permute(3, 2, 0, 1, 4).flatten(1, 3)
    torch.testing.assert_close(ours, golden.expected["encoder_output"], atol=2e-5, rtol=0)


def test_gradients(golden: Golden) -> None:
    golden.model.zero_grad()
    next_token_loss(golden.logits(), golden.expected["labels"]).backward()
    parameters = dict(golden.model.named_parameters())
    assert len(golden.settings["gradients"]) > 10
    for source in golden.settings["gradients"]:
        target = target_name(source, golden.model.config)
        assert target is not None
        stored = golden.expected.get(f"grad.{source}")
        gradient = parameters[target].grad
        if stored is None or gradient is None:
            assert golden.settings["retro_attention_gate"] == 0
            assert stored is None or not stored.any()
            continue
        expected = regroup(target, stored, golden.model.config)
        difference = (gradient - expected).abs().max() / expected.abs().max()
        assert difference <= 2e-5, source


@torch.no_grad()
def test_gate_0_is_the_plain_decoder() -> None:
    golden = Golden("legacy_gate0")
    off = golden.model(golden.expected["input_ids"])
    torch.testing.assert_close(off, golden.expected["logits"], atol=2e-5, rtol=0)
    assert torch.equal(off, golden.logits())


def test_the_wrong_residual_rule_is_seen() -> None:
    golden = Golden("legacy_nvidia")
    encoder = golden.model.config.encoder.model_copy(update={"cross_attention_residual": "normalised"})
    other = RetroModel(golden.model.config.model_copy(update={"encoder": encoder}))
    other.load_state_dict(golden.model.state_dict())
    with torch.no_grad():
        logits = other(golden.expected["input_ids"], golden.neighbors("neighbor_ids"))
    expected = golden.settings["checks"]["legacy_minus_normalised_residual_variant"]
    difference = (logits - golden.expected["logits"]).abs().max().item()
    assert difference == pytest.approx(expected, abs=1e-4)
