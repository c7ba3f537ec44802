"""AdamW and the learning rate of each step."""

from __future__ import annotations

import math

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


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """Weight decay on matrices only: norms, biases and gates are left alone."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
    )
