"""Backends and compute types of one model beside each other: speed, and the effect on the 10 nearest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from openbook_core.errors import ConfigError
from openbook_core.fingerprint import require_equal
from openbook_embedder.config import Device, EncoderOptions
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.exported import ExportRecord
from openbook_embedder.folder import EncoderFolder
from openbook_embedder.recall import effect_against

_LIBRARIES = ("torch", "transformers", "onnxruntime", "openvino")


def compare_backends(
    model: str | Path,
    exports: Sequence[Path],
    texts: Sequence[str],
    *,
    device: Device = "auto",
    rounds: int = 5,
    timed: int = 64,
    options: EncoderOptions | None = None,
) -> dict[str, Any]:
    """JSON values: for `model` in torch (float32 and bfloat16) and each of its `exports`, chunks/s from text over
    `timed` of the texts in every one of `rounds` turns with their median, and the effect over all the texts.

    Raises what `EncoderEngine.load` does, MismatchError for an export of another model, and ConfigError for no text.
    """
    if not texts:
        raise ConfigError("texts: there are none to compare with", field="texts")
    options = options or EncoderOptions()
    exact = EncoderEngine.load(model, dtype="float32", backend="torch", device=device, options=options)
    engines = {"torch-float32": exact}
    engines["torch-bfloat16"] = EncoderEngine.load(
        model, dtype="bfloat16", backend="torch", device=device, options=options
    )
    for folder in exports:
        record = ExportRecord.read(EncoderFolder.read(folder, options).path)
        if record is None:
            raise ConfigError(f"exports: {folder} is no export", field="exports")
        engine = EncoderEngine.load(folder, backend=record.backend, options=options)
        require_equal("the embedder", engine.fingerprint, exact.fingerprint, str(folder), str(model))
        engines[engine.dtype] = engine
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    sample = texts[:timed]
    for turn in range(rounds + 1):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.encode(sample)
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    exact_ND = exact.encode(texts)
    effects = {name: effect_against(exact, exact_ND, engine, texts) for name, engine in engines.items()}
    return {
        "model": str(model),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "tokens_per_text": round(sum(exact.tokenize(sample).counts) / len(sample), 1),
        "chunks_per_s": {name: round(len(sample) / median(taken), 1) for name, taken in seconds.items()},
        "effect": {name: effect.model_dump() for name, effect in effects.items()},
        "raw": {"texts_per_turn": len(sample), "seconds": seconds},
    }


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
