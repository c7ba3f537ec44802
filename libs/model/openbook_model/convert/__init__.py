"""Conversion from other formats: `huggingface` (folders and GGUF files), `megatron` and `legacy` (NVIDIA's Retro).

`openbook_model.export` is the way back.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal, get_args

import torch

from openbook_core.errors import ArgumentError
from openbook_core.tokenizer import Tokenizer
from openbook_model.checkpoint import save
from openbook_model.convert.huggingface import RetrofitOptions as RetrofitOptions
from openbook_model.convert.huggingface import convert_huggingface
from openbook_model.convert.legacy import convert_legacy
from openbook_model.convert.megatron import convert_megatron
from openbook_model.convert.report import ConversionReport

Source = Literal["hf", "gguf", "megatron-legacy", "megatron-core"]


def convert_model(
    kind: Source,
    source: Path,
    target: Path,
    options: RetrofitOptions | None = None,
    *,
    dtype: torch.dtype | None = torch.float32,
    tokenizer: str | None = None,
    allow_unexpected: bool = False,
) -> ConversionReport:
    """Write `source` as a model directory at `target`, with the tokenizer and chat template of `tokenizer` (a name or
    path), or else those it brings.

    `options` are for models that get new RETRO parts; the chunk length also for "megatron-legacy", which does not say
    it. A `dtype` of None is the source's own. Errors as in `convert_huggingface`, `convert_legacy`, `convert_megatron`
    and `save`; nothing is written then.
    """
    if kind not in get_args(Source):
        raise ArgumentError(f"unknown source {kind!r}; known: {', '.join(get_args(Source))}", field="from")
    words = Tokenizer.load(tokenizer) if tokenizer else None
    if kind == "megatron-core":
        if options is not None:
            raise ArgumentError("retrofit options do not apply to a model that has its RETRO parts", field="options")
        model, report = convert_megatron(source, dtype=dtype, allow_unexpected=allow_unexpected)
    elif kind == "megatron-legacy":
        model, report = convert_legacy(source, options, dtype=dtype, allow_unexpected=allow_unexpected)
    else:
        if (kind == "gguf") != (source.suffix == ".gguf"):
            raise ArgumentError(f"{source} does not fit {kind!r}: a .gguf file is 'gguf', a folder 'hf'", field="from")
        options = options or RetrofitOptions()
        model, report = convert_huggingface(source, options, dtype=dtype, allow_unexpected=allow_unexpected)
        if words is None and kind == "gguf":
            words = Tokenizer.load(source)
    if words is not None and words.vocab_size > model.config.vocab_size:
        raise ArgumentError(
            f"the tokenizer has {words.vocab_size} tokens, the model's vocabulary {model.config.vocab_size}; they do "
            "not belong together",
            field="tokenizer",
        )
    with tempfile.TemporaryDirectory() as folder:
        if words is not None:
            words.save(Path(folder))
            save(model, target, folder)
        else:
            save(model, target, source if (source / "tokenizer.json").is_file() else None)
    return report
