"""AdamW and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from openbook_trainer.config import OptimiserConfig


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Rate of step number `step` (from 0) of `steps`: linear warm-up, then cosine to `final_fraction` of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def make_optimiser(
    model: nn.Module, config: OptimiserConfig, rate_scale: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """Of the parameters that are trained. Weight decay on matrices only: norms, biases and gates are left alone.

    `rate_scale`: by name, what a parameter's rate is multiplied by, all through the schedule; its group says so.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.dim() >= 2 else 0.0
            groups.setdefault(((rate_scale or {}).get(name, 1.0), decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "rate_scale": scale, "lr": config.learning_rate * scale}
            for (scale, decay), parameters in groups.items()
        ],
        betas=(config.beta1, config.beta2),
    )
