"""A task of a few questions, each on a document of its own, and a random model whose cross attention is on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from retriever_support import tiny_tokenizer
from zstandard import ZstdCompressor

from openbook_model import RetroConfig, RetroModel, initialise, save


def write_task(data: Path, lands: dict[str, str], question: str = "the river {} flows through which land") -> None:
    """The task `nq` asks through which land each river flows."""
    rows = [
        {
            "example_id": number,
            "title_text": river,
            "question_text": question.format(river),
            "paragraph_text": f"The river {river} flows through {land}.",
            "original_nq_answers": [[{"string": land}]],
        }
        for number, (river, land) in enumerate(lands.items())
    ]
    (data / "nq").mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (data / "nq" / "qed-part-a.jsonl.zst").write_bytes(ZstdCompressor().compress(text))


def save_model(folder: Path, chunk_length: int, **more: Any) -> None:
    model = RetroModel(
        RetroConfig.parse(
            {
                "vocab_size": 256,
                "hidden_size": 16,
                "num_layers": 2,
                "num_heads": 2,
                "chunk_length": chunk_length,
                "max_positions": 512,
                "cross_attention_layers": (2,),
                "encoder": {"hidden_size": 16, "num_heads": 2, "num_layers": 1},
                **more,
            }
        )
    )
    initialise(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():  # large on purpose, so that neighbours matter
            parameter.mul_(5) if parameter.dim() > 1 else None
    tiny_tokenizer().save(folder.with_name("tokenizer"))
    save(model, folder, folder.with_name("tokenizer"))
