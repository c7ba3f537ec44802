"""What a model computes, from its configuration alone: parameters by part, and FLOPs. Memory: `openbook_model.memory`.

FLOPs: a product of [a, b] and [b, c] is 2abc. Forward, a linear layer does one product a row and attention two of
queries by keys; causal attention counts in full, as is usual for model FLOPs utilisation (PaLM, arXiv 2204.02311,
appendix B). Backward costs twice the forward. Norms, activations, embeddings and the encoder's convolutions
are left out.

Axes in names: T tokens of a sequence, m chunk length, L = ceil(T/m) chunks, K neighbours of R tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from openbook_model.config import RetroConfig
from openbook_model.model import RetroModel


@dataclass(frozen=True)
class Work:
    """Forward FLOPs of linear layers, and of attention between queries and keys."""

    linear: int = 0
    scores: int = 0

    @property
    def total(self) -> int:
        return self.linear + self.scores

    def __add__(self, other: Work) -> Work:
        return Work(self.linear + other.linear, self.scores + other.scores)

    def __mul__(self, times: int) -> Work:
        return Work(self.linear * times, self.scores * times)


@dataclass(frozen=True)
class ForwardWork:
    """Of one sequence: `below` is the part of the decoder before its first cross attention."""

    below: Work
    above: Work
    head: Work
    cross: Work
    encoder: Work
    encoder_input: Work

    @property
    def decoder(self) -> Work:
        """With the output layer: the GPT that the model is OFF."""
        return self.below + self.above + self.head

    @property
    def total(self) -> int:
        return (self.decoder + self.cross + self.encoder + self.encoder_input).total


def parameters_by_part(config: RetroConfig) -> dict[str, int]:
    """Numbers of parameters; built on the meta device, so no size is too large."""
    model = RetroModel.allocate(config, device="meta")
    parts = dict.fromkeys(
        ("embeddings", "output layer", "self attention", "MLP", "norms", "cross attention", "encoder"), 0
    )
    for name, parameter in model.named_parameters():
        parts[_part(name)] += parameter.numel()
    return parts


def _part(name: str) -> str:
    if name.startswith("encoder."):
        return "encoder"
    if "cross" in name or name.endswith(".gate"):
        return "cross attention"
    if "norm" in name:
        return "norms"
    if "embedding" in name:
        return "embeddings"
    if name.startswith("head."):
        return "output layer"
    return "self attention" if ".attention." in name else "MLP"


def forward_work(
    config: RetroConfig, tokens: int, *, neighbors: int | None = None, neighbor_length: int | None = None
) -> ForwardWork:
    """FLOPs of a forward pass over one sequence; `neighbors` 0 is OFF, None is what the configuration says."""
    per_chunk = config.num_neighbors if neighbors is None else neighbors
    length = neighbor_length or config.neighbor_length
    width, size = config.hidden_size, config.num_heads * config.head_dim
    kv_size = 2 * config.num_kv_heads * config.head_dim
    attention = Work(2 * tokens * (width * (size + kv_size) + size * width), 4 * tokens * tokens * size)
    mlp = Work(2 * tokens * _mlp_weights(config, width, config.ffn_hidden_size))
    layers = config.cross_attention_layers if per_chunk else ()
    before = layers[0] - 1 if layers else config.num_layers
    below = (attention + mlp) * before + (attention if layers else Work())
    above = (attention + mlp) * (config.num_layers - before - 1) + mlp if layers else Work()
    head = Work(2 * tokens * width * config.vocab_size)
    if not layers:
        return ForwardWork(below, above, head, Work(), Work(), Work())

    chunks = math.ceil(tokens / config.chunk_length)
    asking, read = chunks * config.chunk_length, chunks * per_chunk * length
    encoder = config.encoder
    reader = encoder.hidden_size
    cross = Work(
        2 * asking * 2 * width * size + 2 * read * reader * kv_size, 4 * asking * per_chunk * length * size
    ) * len(layers)
    own = encoder.num_heads * encoder.head_dim
    layer = Work(
        2 * read * (4 * reader * own + _mlp_weights(config, reader, encoder.ffn_hidden_size)), 4 * read * length * own
    )
    conditioned = Work(2 * read * 2 * reader * own + 2 * asking * width * 2 * own, 4 * read * config.chunk_length * own)
    reading = layer * encoder.num_layers + conditioned * len(encoder.cross_attention_layers)
    projection = Work(2 * read * width * reader) if reader != width else Work()
    return ForwardWork(below, above, head, cross, reading, projection)


def training_flops(
    config: RetroConfig,
    tokens: int,
    *,
    frozen_base: bool = False,
    neighbors: int | None = None,
    neighbor_length: int | None = None,
) -> int:
    """Model FLOPs of a forward and a backward pass over one sequence.

    Three times the forward pass. With a frozen base (only encoder, cross attention and gates are trained) no gradients
    of its weights are computed, and none at all before the first cross attention.
    """
    work = forward_work(config, tokens, neighbors=neighbors, neighbor_length=neighbor_length)
    if not frozen_base:
        return 3 * work.total
    fixed = work.above + work.head
    trained = work.cross + work.encoder
    return work.below.total + 2 * fixed.linear + 3 * fixed.scores + 3 * trained.total + 2 * work.encoder_input.total


def _mlp_weights(config: RetroConfig, width: int, inner: int) -> int:
    return (3 if config.mlp == "swiglu" else 2) * width * inner
