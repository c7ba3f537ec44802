"""Memory of training with FSDP, estimated from a configuration alone.

Parameters, gradients and AdamW's two moments in float32, sharded over all GPUs; compute in bfloat16. Left out: the
allocator's overhead, CUDA's own memory (about 1 GB) and buffers of the communication.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from openbook_model.config import RetroConfig
from openbook_model.model import RetroModel

_FLOAT, _HALF = 4, 2


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    `gathered`: bfloat16 weights and gradients that are whole at a time: embeddings and output layer, and of the blocks
    the one at work, the next, and one's gradients. `activations` are kept for the backward pass; `checkpointed`
    instead of them with activation checkpointing of each block. `logits`: bfloat16, and in float32 for the loss and its
    gradient.
    """

    states: int
    gathered: int
    activations: int
    checkpointed: int
    logits: int

    @property
    def total(self) -> int:
        return self.states + self.gathered + self.activations + self.logits

    @property
    def total_checkpointed(self) -> int:
        return self.states + self.gathered + self.checkpointed + self.logits


def training_memory(config: RetroConfig, tokens: int, *, gpus: int = 1, sequences: int = 1) -> Memory:
    """With micro-batches of `sequences` times `tokens` on each GPU."""
    model = RetroModel.allocate(config, device="meta")
    blocks = [*model.blocks, *(model.encoder.blocks if model.encoder is not None else ())]
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    total = sum(parameter.numel() for parameter in model.parameters())
    whole = 2 * (total - sum(sizes)) + 3 * max(sizes) if gpus > 1 else 2 * total
    kept = SavedElements.of(config, tokens)
    return Memory(
        states=math.ceil(4 * _FLOAT * total / gpus),
        gathered=_HALF * whole,
        activations=sequences * _HALF * kept.total,
        checkpointed=sequences * _HALF * kept.checkpointed,
        logits=sequences * tokens * config.vocab_size * (_HALF + 2 * _FLOAT),
    )


@dataclass(frozen=True)
class SavedElements:
    """Tensor elements that autograd keeps of one sequence, with fused attention and norms that are not fused (RMSNorm keeps
    one more tensor so than its fused kernel).

    `block` and `cross` once for each decoder block and cross attention, `reader` for each of the encoder's blocks.
    """

    block: int
    cross: int
    reader: int
    encoder_ends: int
    final_norm: int
    inputs: int
    total: int
    checkpointed: int

    @classmethod
    def of(cls, config: RetroConfig, tokens: int) -> SavedElements:
        encoder, layers = config.encoder, config.cross_attention_layers
        norm = 3 if config.norm == "rmsnorm" else 2
        mlp = 4 if config.mlp == "swiglu" else 2
        size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        width, reader_width, own = config.hidden_size, encoder.hidden_size, encoder.num_heads * encoder.head_dim

        # Norm, fused projections (values stay a view of them), turned queries and keys, output; norm, MLP.
        block = 2 * norm * width + mlp * config.ffn_hidden_size + 2 * size + 2 * kv_size
        if config.positions == "rotary":
            block += size + kv_size
        if config.qk_norm:
            block += (norm - 1) * (size + kv_size)
        block *= tokens
        final_norm = norm * width * tokens
        if not layers:
            total = config.num_layers * block + final_norm
            inputs = config.num_layers * width * tokens
            return cls(block, 0, 0, 0, final_norm, inputs, total, inputs + final_norm + block)

        chunks = math.ceil(tokens / config.chunk_length)
        asking, read = chunks * config.chunk_length, chunks * config.num_neighbors * config.neighbor_length
        cross = (norm - 1) * width * tokens + (width + 2 * size) * asking + 2 * kv_size * read
        if config.gate == "learned":
            cross += width * tokens
        reader = 2 * norm * reader_width + mlp * encoder.ffn_hidden_size + 4 * own
        if encoder.positions == "rotary":
            reader += 2 * own
        if encoder.convolution:
            reader += norm * reader_width
        reader *= read
        conditioned = read * (norm * reader_width + 2 * own) + asking * (width + 2 * own)
        ends = read * reader_width * (norm if encoder.final_norm else 1)
        if reader_width != width:
            ends += read * width
        readers = encoder.num_layers * reader + len(encoder.cross_attention_layers) * conditioned
        total = config.num_layers * block + len(layers) * cross + readers + ends + final_norm
        inputs = config.num_layers * width * tokens + encoder.num_layers * reader_width * read
        # Recomputing the first cross attention recomputes an encoder that is conditioned on it.
        recomputed = block + cross + (readers if encoder.conditioned else 0)
        recomputed = max(recomputed, reader)
        return cls(block, cross, reader, ends, final_norm, inputs, total, inputs + ends + final_norm + recomputed)
