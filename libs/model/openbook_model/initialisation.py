"""Initial weights: 1/sqrt(fan in), residual outputs over sqrt(2 * layers), embeddings 0.02, gates 0."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from openbook_core.errors import ArgumentError
from openbook_model.model import RetroModel

_RESIDUAL_OUTPUTS = (".output.weight", ".mlp.down.weight", ".convolution.weight")
_EMBEDDING_STD = 0.02
_COPIED_EMBEDDING_STD = 0.1
_COPYING_OUTPUTS = 0.3


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
        std = _EMBEDDING_STD if "embedding" in name else 1 / math.sqrt(parameter[0].numel())
        if name.endswith(_RESIDUAL_OUTPUTS):
            layers = model.config.encoder.num_layers if name.startswith("encoder.") else model.config.num_layers
            std /= math.sqrt(2 * layers)
        digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest))
        values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
        parameter.copy_(values)


@torch.no_grad()
def start_copying(model: RetroModel, seed: int) -> None:
    """After `initialise`: each cross attention adds what it attends to, nearly as it stands in the passage.

    Its output projection is its value projection transposed, which is orthogonal, so their product is the identity
    (after mimetic initialisation, arXiv 2305.09828); embeddings are larger and all other residual outputs smaller, so
    that a passage's states are those of its tokens. Raises ArgumentError for a model whose encoder has another width
    than its decoder, or fewer key than query heads.
    """
    config = model.config
    if config.encoder.hidden_size != config.hidden_size or config.num_kv_heads != config.num_heads:
        raise ArgumentError("copying: the encoder's width and its heads must be the decoder's", field="copying")
    for name, parameter in model.named_parameters():
        if "embedding" in name:
            parameter.mul_(_COPIED_EMBEDDING_STD / _EMBEDDING_STD)
        elif name.endswith(_RESIDUAL_OUTPUTS) and "convolution" not in name:
            parameter.mul_(_COPYING_OUTPUTS)
    for number, block in enumerate(model.decoder_blocks()):
        if block.has_cross:
            generator = torch.Generator().manual_seed(seed * len(model.blocks) + number)
            values = block.cross.key_value.weight.chunk(2)[1]
            values.copy_(torch.nn.init.orthogonal_(torch.empty(values.shape), generator=generator))
            block.cross.output.weight.copy_(values.T)
