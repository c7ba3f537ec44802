"""Optimisers and schedules against closed forms and updates written out; their state through a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer_fakes import FakeRetriever, settings, write_corpus

import openbook_model
from openbook_model import RetroModel, initialise
from openbook_trainer import app
from openbook_trainer.config import OptimiserConfig, TrainConfig
from openbook_trainer.muon import Muon
from openbook_trainer.optimiser import average_of, is_hidden_matrix, learning_rate, make_optimisers

RECIPE = {"kind": "muon", "muon_learning_rate": 0.004, "learning_rate": 0.002, "schedule": "wsd", "average_decay": 0.5}


def small_model(tmp_path: Path) -> RetroModel:
    model = RetroModel(TrainConfig.parse(settings(tmp_path)).model)
    initialise(model, 1)
    return model


def test_cosine_in_closed_form() -> None:
    config = OptimiserConfig(learning_rate=2.0, warmup_steps=4, final_fraction=0.25)
    rates = [learning_rate(config, step, 13) for step in range(13)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    expected = [2.0 * (0.25 + 0.75 * (1 + math.cos(math.pi * i / 8)) / 2) for i in range(9)]
    np.testing.assert_allclose(rates[4:], expected, rtol=1e-12)
    assert rates[-1] == pytest.approx(0.5)


def test_warmup_stable_decay_in_closed_form() -> None:
    config = OptimiserConfig(learning_rate=2.0, warmup_steps=4, final_fraction=0.25, schedule="wsd", decay_fraction=0.3)
    rates = [learning_rate(config, step, 20) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:14] == [2.0] * 10
    np.testing.assert_allclose(rates[14:], [2.0 - 1.5 * i / 6 for i in range(1, 7)], rtol=1e-12)


def test_all_decay_begins_after_the_warmup() -> None:
    config = OptimiserConfig(learning_rate=1.0, warmup_steps=2, final_fraction=0.0, schedule="wsd", decay_fraction=1.0)
    rates = [learning_rate(config, step, 6) for step in range(6)]
    np.testing.assert_allclose(rates, [0.5, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_adamw_is_the_published_rule(tmp_path: Path) -> None:
    """Loshchilov and Hutter's algorithm 2, in float64, with the decay on matrices only."""
    model = small_model(tmp_path)
    config = OptimiserConfig(learning_rate=0.01, weight_decay=0.3)
    optimisers = make_optimisers(model, config)
    assert [type(each) for each in optimisers] == [torch.optim.AdamW]
    assert optimisers[0].param_groups[0]["fused"]
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 4):
        for name, parameter in model.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad, g = gradient, gradient.double()
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            moved = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.95**step)).sqrt() + 1e-8)
            decay = 0.3 if parameter.dim() >= 2 else 0.0
            expected[name] = expected[name] * (1 - 0.01 * decay) - 0.01 * moved
        optimisers[0].step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_muon_moves_hidden_matrices_along_orthogonal_ones(tmp_path: Path, bfloat16: bool) -> None:
    """The singular values of an update are those of Newton-Schulz, 0.7 to 1.2, times 0.2 sqrt(longer side) and the rate."""
    model = small_model(tmp_path)
    optimisers = make_optimisers(model, OptimiserConfig.parse({**RECIPE, "weight_decay": 0.0}), bfloat16=bfloat16)
    assert [type(each) for each in optimisers] == [torch.optim.Muon if bfloat16 else Muon, torch.optim.AdamW]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimiser in optimisers:
        optimiser.step()
    hidden = []
    for name, parameter in model.named_parameters():
        update = before[name] - parameter.detach()
        if not is_hidden_matrix(name, parameter):
            torch.testing.assert_close(update, 0.002 * parameter.grad.sign(), rtol=1e-3, atol=1e-6)  # type: ignore[union-attr]
            continue
        hidden.append(name)
        assert parameter.grad is not None
        left, _, right = torch.linalg.svd(parameter.grad, full_matrices=False)
        turned = left.T @ update @ right.T / (0.004 * 0.2 * math.sqrt(max(parameter.shape)))
        values = turned.diagonal()
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3
        assert float((turned - values.diag()).abs().max()) < 0.1
    assert {name.rsplit(".", 2)[-2] for name in hidden} == {"qkv", "output", "up", "down", "query", "key_value"}
    assert not any("embedding" in name or name.startswith("head") for name in hidden)


def test_the_average_is_its_sum(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    optimisers = make_optimisers(model, OptimiserConfig.parse({**RECIPE, "average_decay": 0.75}))
    seen = [{name: p.detach().clone() for name, p in model.named_parameters()}]
    for number in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1.0 + number)
        for optimiser in optimisers:
            optimiser.step()
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
    average = average_of(optimisers, model)
    assert set(average) == set(seen[0])
    for name, value in average.items():
        expected = 0.75**3 * seen[0][name] + sum(0.25 * 0.75 ** (3 - n) * seen[n][name] for n in (1, 2, 3))
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stop_at", [1, 2])
def test_muon_and_the_average_resume_to_the_bit(tmp_path: Path, retriever: FakeRetriever, stop_at: int) -> None:
    write_corpus(tmp_path)

    def run(out: str, **changes: Any) -> dict[str, Any]:
        return app.train(TrainConfig.parse(settings(tmp_path, out=str(tmp_path / out), optimiser=RECIPE, **changes)))

    straight = run("straight")
    run("halves", stop_at=stop_at)
    assert run("halves")["weights_hash"] == straight["weights_hash"]
    hashes = [
        openbook_model.weights_hash(openbook_model.load(tmp_path / out / "model-average"))
        for out in ("straight", "halves")
    ]
    assert hashes[0] == hashes[1] != straight["weights_hash"]
