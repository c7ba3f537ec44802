"""Small random models for the tests of libs/model."""

from __future__ import annotations

from typing import Any

import torch

from openbook_model.config import EncoderConfig, RetroConfig
from openbook_model.initialisation import initialise
from openbook_model.model import RetroModel


def small_config(*, conditioned: bool = False, encoder: dict[str, Any] | None = None, **settings: Any) -> RetroConfig:
    base: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "max_positions": 128,
        "chunk_length": 8,
        "cross_attention_layers": (2, 4),
        "encoder": EncoderConfig(hidden_size=24, num_heads=2, conditioned=conditioned, **(encoder or {})),
    }
    return RetroConfig(**(base | settings))


@torch.no_grad()
def random_model(config: RetroConfig, seed: int = 0) -> RetroModel:
    """Every parameter is away from its trivial initial value, gates and biases too."""
    model = RetroModel.allocate(config)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if parameter.shape == (1,):
            parameter.fill_(0.7)
    return model.eval()
