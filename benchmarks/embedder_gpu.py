"""Chunks per second of an encoder with random weights on a GPU, and the share of the card's peak that this is."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import environment

from openbook_core.errors import UnavailableError
from openbook_core.weights import DEFAULT_EMBEDDER, resolve_model
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine

TOKENS, BATCHES, TRIALS, TRIAL_S = 64, (64, 256, 1024), 5, 2.0
GEOMETRIES = {
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "bert-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
# Dense bfloat16 operations a second that the makers state.
_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


def measure_geometry(name: str, work: Path) -> dict[str, Any]:
    """{chunks_per_s, peak_share, raw}: chunks of TOKENS token ids to vectors in host memory, at the best of BATCHES.

    Raises UnavailableError where there is no GPU. The share is None for a card whose peak is not known here.
    """
    if not torch.cuda.is_available():
        raise UnavailableError("--geometry measures on a GPU, and torch sees none")
    circumstances, folder = environment(), _write_encoder(name, work / name)
    engine = EncoderEngine.load(folder, options=EncoderOptions(pooling="mean"))
    rng = np.random.default_rng(0)
    trials: dict[int, list[dict[str, float]]] = {}
    for batch in BATCHES:
        ids = rng.integers(1000, engine.vocab_size, (batch, TOKENS)).tolist()
        _trial(engine, ids, TRIAL_S)  # warm, compiled
        trials[batch] = [_trial(engine, ids, TRIAL_S) for _ in range(TRIALS)]
    rates = {batch: median(each["chunks"] / each["seconds"] for each in trials[batch]) for batch in BATCHES}
    best = max(rates, key=rates.__getitem__)
    device, operations = torch.cuda.get_device_name(), _operations(**GEOMETRIES[name])
    peak = next((value for card, value in _PEAKS.items() if card in device), None)
    return {
        "chunks_per_s": round(rates[best], 1),
        "peak_share": None if peak is None else round(rates[best] * operations / peak, 4),
        "raw": {
            "command": f"python benchmarks/embedder.py --geometry {name}",
            **circumstances,
            "geometry": name,
            "device": device,
            "torch": torch.__version__,
            "dtype": engine.dtype,
            "batch": best,
            "operations_per_chunk": operations,
            "peak_operations_per_s": peak,
            "trials": trials,
        },
    }


def _trial(engine: EncoderEngine, ids: list[list[int]], seconds: float) -> dict[str, float]:
    done, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        engine.encode_batch(ids)
        done += len(ids)
    return {"chunks": done, "seconds": taken}


def _operations(hidden_size: int, num_hidden_layers: int, num_attention_heads: int, intermediate_size: int) -> int:
    """Of one chunk: two for each multiplication of a weight, and attention's two products."""
    weights = 4 * hidden_size**2 + 2 * hidden_size * intermediate_size
    return num_hidden_layers * TOKENS * (2 * weights + 4 * TOKENS * hidden_size)


def _write_encoder(name: str, folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    source = resolve_model(DEFAULT_EMBEDDER)
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / file, folder / file)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=30522, **GEOMETRIES[name])).save_pretrained(folder)
    return folder
