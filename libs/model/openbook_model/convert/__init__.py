"""Conversion from other formats: `huggingface` (folders and GGUF files) and `megatron` (NVIDIA's Retro)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import torch

from openbook_core.errors import ArgumentError
from openbook_core.tokenizer import Tokenizer
from openbook_model.checkpoint import save
from openbook_model.convert.huggingface import RetrofitOptions, convert_huggingface
from openbook_model.convert.megatron import convert_megatron
from openbook_model.convert.report import ConversionReport

Source = Literal["hf", "gguf", "megatron-core"]


def convert_model(
    kind: Source,
    source: Path,
    target: Path,
    options: RetrofitOptions | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> ConversionReport:
    """Write `source` as a model directory at `target`, with its tokenizer and chat template if it brings one.

    `options` are for `hf` and `gguf`, which get new RETRO parts. Errors as in `convert_huggingface`,
    `convert_megatron` and `save`; nothing is written then.
    """
    if kind == "megatron-core":
        if options is not None:
            raise ArgumentError("retrofit options do not apply to a model that has its RETRO parts", field="options")
        model, report = convert_megatron(source)
    elif kind in ("hf", "gguf"):
        if (kind == "gguf") != (source.suffix == ".gguf"):
            raise ArgumentError(f"{source} does not fit {kind!r}: a .gguf file is 'gguf', a folder 'hf'", field="kind")
        model, report = convert_huggingface(source, options or RetrofitOptions())
    else:
        raise ArgumentError(f"unknown source {kind!r}; known: hf, gguf, megatron-core", field="kind")
    model = model.to(dtype)
    if kind == "gguf":
        with tempfile.TemporaryDirectory() as folder:
            Tokenizer.load(source).save(Path(folder))
            save(model, target, folder)
    else:
        save(model, target, source if (source / "tokenizer.json").is_file() else None)
    return report
