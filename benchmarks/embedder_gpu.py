"""Chunks per second of an encoder with random weights on a GPU, and the share of the card's peak that this is.

    python benchmarks/embedder_gpu.py --check [--geometry bert-base|bert-large] [--json FILE]

checks there, in a few minutes, that the network compiled and recorded as CUDA graphs computes what it computes without,
at every shape that batches are padded to and beyond the largest; exit code 1 where a vector differs too much.
`embedder.py --geometry` measures speed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import environment, figure_lines, run_benchmark
from numpy.typing import NDArray

from openbook_core.errors import UnavailableError
from openbook_core.probes import lowest_cosine
from openbook_core.weights import DEFAULT_EMBEDDER, resolve_model
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.exported import MIN_PROBE_COSINE
from openbook_embedder.shapes import Shape, usual_shapes

TOKENS, BATCHES, TRIALS, TRIAL_S = 64, (64, 256, 1024), 5, 2.0
GEOMETRIES = {
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "bert-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
# Chunks a second of BERT-large on one A100, of InstructRetro's database.
INSTRUCTRETRO = 1728
# Dense bfloat16 operations a second that the makers state; the first name that is in the card's, as whole words, holds.
_PEAKS = (
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
)
# Token ids to vectors [n, d].
Encode = Callable[[Sequence[Sequence[int]]], NDArray[np.float32]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", required=True, help="every shape against the network as it is")
    parser.add_argument("--geometry", choices=tuple(GEOMETRIES), default="bert-base")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome")
    options = parser.parse_args(arguments)
    return run_benchmark(
        lambda work: check_geometry(options.geometry, work),
        figure_lines,
        limit_s=480,
        json_file=options.json,
        passed=lambda result: result["passed"],
    )


def check_geometry(name: str, work: Path) -> dict[str, Any]:
    """{passed, cosine_min, prepare_s, raw}; raises UnavailableError where there is no GPU."""
    _require_gpu()
    circumstances, folder, options = environment(), _write_encoder(name, work / name), EncoderOptions(pooling="mean")
    plain = EncoderEngine.load(folder, dtype="bfloat16", compile=False, options=options)
    start = time.perf_counter()
    prepared = EncoderEngine.load(folder, dtype="bfloat16", options=options)
    prepare_s = time.perf_counter() - start
    shapes = usual_shapes(prepared.max_tokens)
    found = check_shapes(plain.encode_batch, prepared.encode_batch, shapes, plain.vocab_size, prepared.max_tokens)
    return outcome(found) | {
        "prepare_s": round(prepare_s, 1),
        "raw": {
            "command": f"python benchmarks/embedder_gpu.py --check --geometry {name}",
            **circumstances,
            "geometry": name,
            "arithmetic": dict(prepared.arithmetic),
            "batches": found,
        },
    }


def outcome(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether each batch of `check_shapes` is right, and the lowest cosine."""
    lowest = min(each["cosine"] for each in found)
    return {"passed": bool(lowest >= MIN_PROBE_COSINE), "batches": len(found), "cosine_min": lowest}


def check_shapes(
    plain: Encode, prepared: Encode, shapes: Sequence[Shape], vocab_size: int, max_tokens: int, seed: int = 0
) -> list[dict[str, Any]]:
    """For random batches that are padded to each of `shapes`, that fill them, and that none holds: their rows and longest
    tokens, and the lowest cosine of the two ways' vectors."""
    rng, found = np.random.default_rng(seed), []
    for lengths in _batches(rng, shapes, max_tokens):
        ids = [rng.integers(5, vocab_size, length).tolist() for length in lengths]
        cosine = lowest_cosine(plain(ids), prepared(ids))
        found.append(
            {"rows": len(ids), "tokens": max(lengths), "full": min(lengths) == max(lengths), "cosine": round(cosine, 6)}
        )
    return found


def _batches(rng: np.random.Generator, shapes: Sequence[Shape], max_tokens: int) -> Iterator[list[int]]:
    for rows, tokens in shapes:
        least = rows // 2 + 1  # fewer rows take a smaller shape
        yield [tokens] * rows
        yield [tokens] * least
        yield [tokens - 1 or 1, *rng.integers(1, max(2, tokens), least - 1).tolist()]
    rows = 2 * max(rows for rows, _ in shapes) + 1
    yield [min(TOKENS, max_tokens)] * rows
    yield [min(TOKENS, max_tokens), *rng.integers(1, min(TOKENS, max_tokens) + 1, rows).tolist()]
    yield [max_tokens, 1, max_tokens // 2 or 1]


def measure_geometry(name: str, work: Path) -> dict[str, Any]:
    """{chunks_per_s, vs_instructretro, peak_share, raw}: chunks of TOKENS token ids to vectors in host memory, at the best
    of BATCHES.

    Raises UnavailableError where there is no GPU. The share is None for a card whose peak is not known here.
    """
    _require_gpu()
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
    peak = peak_of(device)
    return {
        "chunks_per_s": round(rates[best], 1),
        "vs_instructretro": round(rates[best] / INSTRUCTRETRO, 3),
        "peak_share": None if peak is None else round(rates[best] * operations / peak, 4),
        "raw": {
            "command": f"python benchmarks/embedder.py --geometry {name}",
            **circumstances,
            "geometry": name,
            "device": device,
            "arithmetic": dict(engine.arithmetic),
            "torch": torch.__version__,
            "dtype": engine.dtype,
            "batch": best,
            "operations_per_chunk": operations,
            "peak_operations_per_s": peak,
            "trials": trials,
        },
    }


def peak_of(device: str) -> float | None:
    """Dense bfloat16 operations a second of the card of this name, None where it is not known here."""
    words = " ".join(re.findall(r"[A-Za-z0-9]+", device))
    return next((peak for card, peak in _PEAKS if re.search(_in_any_order(card), words)), None)


def _in_any_order(card: str) -> str:
    return "".join(rf"(?=.*\b{word}\b)" for word in card.split())


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise UnavailableError("this measures on a GPU, and torch sees none")


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


if __name__ == "__main__":
    sys.exit(main())
