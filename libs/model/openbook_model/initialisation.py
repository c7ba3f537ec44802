"""Initial weights: 1/sqrt(fan in), residual outputs over sqrt(2 * layers), embeddings 0.02, gates 0."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from openbook_model.model import RetroModel

_RESIDUAL_OUTPUTS = (".output.weight", ".mlp.down.weight")
_EMBEDDING_STD = 0.02


@torch.no_grad()
def initialise(model: RetroModel, seed: int, *, only: frozenset[str] | None = None) -> None:
    """Fill all parameters, or those named in `only`, in place.

    Each parameter's values depend on the seed and its name alone, so a decoder starts equal with and without RETRO
    parts. A model on the meta device is given storage first (`to_empty`), a sharded one is filled before sharding.
    """
    for name, parameter in model.named_parameters():
        if only is None or name in only:
            _fill(model, name, parameter, seed)


def _fill(model: RetroModel, name: str, parameter: nn.Parameter, seed: int) -> None:
    if name.endswith(("bias", "gate")):
        parameter.zero_()
    elif parameter.dim() == 1:
        parameter.fill_(0.0 if model.config.norm == "layernorm1p" else 1.0)
    else:
        std = _EMBEDDING_STD if "embedding" in name else 1 / math.sqrt(parameter.shape[1])
        if name.endswith(_RESIDUAL_OUTPUTS):
            layers = model.config.encoder.num_layers if name.startswith("encoder.") else model.config.num_layers
            std /= math.sqrt(2 * layers)
        digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest))
        values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
        parameter.copy_(values)
