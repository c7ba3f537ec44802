"""Tiny models on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from trainer_fakes import M, byte_tokenizer
from zstandard import ZstdDecompressor

from openbook_model import RetroConfig, RetroModel, initialise, save

ROOT = Path(__file__).parents[3]


def factbook_texts(documents: int, characters: int) -> list[dict[str, str]]:
    """The beginnings of the first documents of the edition that ships with the repository."""
    data = (ROOT / "examples" / "factbook" / "2015-11-18.jsonl.zst").read_bytes()
    lines = ZstdDecompressor().stream_reader(data).read().decode().splitlines()[:documents]
    rows = [json.loads(line) for line in lines]
    return [{"id": row["id"], "text": row["text"][:characters]} for row in rows]


def save_tiny(folder: Path, **changes: Any) -> RetroModel:
    """A random RETRO model whose cross attention is on, saved with the byte tokenizer."""
    settings: dict[str, Any] = {
        "vocab_size": 257,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "chunk_length": M,
        "max_positions": 64,
        "cross_attention_layers": (2,),
        "encoder": {"hidden_size": 16, "num_heads": 2, "num_layers": 1},
        **changes,
    }
    model = RetroModel(RetroConfig.parse(settings))
    initialise(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():  # large on purpose, so that neighbours matter
            parameter.mul_(5) if parameter.dim() > 1 else None
    byte_tokenizer().save(folder.with_name("tokenizer"))
    save(model, folder, folder.with_name("tokenizer"))
    return model.eval()
