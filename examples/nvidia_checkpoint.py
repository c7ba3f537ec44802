"""A tiny Retro model with random weights, in the files of NVIDIA's released checkpoints: to try their conversion on.

python examples/nvidia_checkpoint.py FOLDER [RANKS]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

LAYERS, WIDTH, HEADS, INNER, VOCABULARY, POSITIONS = 12, 32, 4, 128, 49152, 512
CROSS_ATTENTION = (6, 9, 12)


def shapes(ranks: int) -> dict[str, tuple[int, ...]]:
    """One rank's parameters; the names of what all ranks share end in `norm.weight` or `norm.bias`."""
    found: dict[str, tuple[int, ...]] = {}

    def layer(prefix: str, *, crosses: bool) -> None:
        norms = ["input_norm", "post_attention_norm"]
        found[f"{prefix}.self_attention.query_key_value.weight"] = (3 * WIDTH // ranks, WIDTH)
        found[f"{prefix}.self_attention.dense.weight"] = (WIDTH, WIDTH // ranks)
        if crosses:
            norms.append("post_inter_attention_norm")
            found[f"{prefix}.inter_attention.query.weight"] = (WIDTH // ranks, WIDTH)
            found[f"{prefix}.inter_attention.key_value.weight"] = (2 * WIDTH // ranks, WIDTH)
            found[f"{prefix}.inter_attention.dense.weight"] = (WIDTH, WIDTH // ranks)
        for norm in norms:
            found[f"{prefix}.{norm}.weight"] = found[f"{prefix}.{norm}.bias"] = (WIDTH,)
        found[f"{prefix}.mlp.dense_h_to_4h.weight"] = (2 * INNER // ranks, WIDTH)
        found[f"{prefix}.mlp.dense_4h_to_h.weight"] = (WIDTH, INNER // ranks)

    for number in range(LAYERS):
        layer(f"layers.{number}", crosses=number + 1 in CROSS_ATTENTION)
    for number in range(2):
        layer(f"layers.{CROSS_ATTENTION[0] - 1}.retriever.layers.{number}", crosses=number == 0)
    found["final_norm.weight"] = found["final_norm.bias"] = (WIDTH,)
    return found


def random(name: str, shape: tuple[int, ...], rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(name.encode()) + (0 if "norm." in name else 1000 * (rank + 1)))
    return (0.1 * torch.randn(shape, generator=generator)).bfloat16()


def write(folder: Path, ranks: int) -> None:
    if HEADS % ranks:
        raise SystemExit(f"RANKS must divide the {HEADS} heads, not be {ranks}")
    args = argparse.Namespace(
        num_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        kv_channels=WIDTH // HEADS,
        ffn_hidden_size=INNER,
        padded_vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        position_embedding_type="rope",
        rotary_percent=0.5,
        swiglu=True,
        apply_layernorm_1p=True,
        norm_epsilon=1e-5,
        add_bias_linear=False,
        untie_embeddings_and_output_weights=True,
        retro_add_retriever=True,
        tensor_model_parallel_size=ranks,
        pipeline_model_parallel_size=1,
    )
    for rank in range(ranks):
        table = (VOCABULARY // ranks, WIDTH)
        language_model = {
            "embedding": {"word_embeddings": {"weight": random("embedding", table, rank)}},
            "encoder": {name: random(name, shape, rank) for name, shape in shapes(ranks).items()},
            "output_layer": {"weight": random("output", table, rank)},
        }
        language_model["encoder"]["layers.0.self_attention.dense._extra_state"] = None
        path = folder / "release" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"args": args, "checkpoint_version": 3.0, "iteration": 0, "model": {"language_model": language_model}}
        torch.save(record, path)
    (folder / "latest_checkpointed_iteration.txt").write_text("release")


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2)
