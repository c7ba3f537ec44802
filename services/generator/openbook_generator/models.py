"""The model to serve: a folder of ours as it is, anything else converted once into the cache folder."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock

from openbook_core.tokenizer import Tokenizer
from openbook_core.weights import resolve_model
from openbook_generator.config import GeneratorConfig
from openbook_model import RetroModel, load, save
from openbook_model.checkpoint import CONFIG_FILE, FORMAT, FORMAT_VERSION
from openbook_model.precision import probe_precision

# Raised whenever the same source would be converted to another model, so that kept conversions are made anew.
CONVERSION_VERSION = 1
_CONVERTERS = ("transformers", "tokenizers", "gguf")
_END_MARKERS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>")


def load_model(config: GeneratorConfig) -> tuple[RetroModel, Tokenizer]:
    """The model in its serving dtype, and its tokenizer. Errors as in `resolve_model`, conversion and `load`."""
    source = resolve_model(config.model)
    folder = source if _is_ours(source) else _converted(source)
    dtype = probe_precision().dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    return load(folder, dtype), Tokenizer.load(folder)


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The end token, and the usual end markers that the vocabulary has."""
    found = [tokenizer.eos_id, *(tokenizer.token_id(marker) for marker in _END_MARKERS)]
    return frozenset(token for token in found if token is not None)


def _is_ours(source: Path) -> bool:
    path = source / CONFIG_FILE
    return path.is_file() and f'"{FORMAT}"' in path.read_text(encoding="utf-8")


def _converted(source: Path) -> Path:
    from openbook_model.convert.huggingface import RetrofitOptions, convert_huggingface

    cache = Path(os.environ.get("OPENBOOK_CACHE") or Path.home() / ".cache" / "openbook")
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    state = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    converter = (FORMAT_VERSION, CONVERSION_VERSION, *(version(name) for name in _CONVERTERS))
    target = cache / "models" / f"{source.stem}-{hashlib.sha256(repr((state, converter)).encode()).hexdigest()[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target / CONFIG_FILE).is_file():
            model, _ = convert_huggingface(source, RetrofitOptions())
            tokenizer_folder = target.with_name(f"{target.name}.tokenizer")
            Tokenizer.load(source).save(tokenizer_folder)
            save(model, target, tokenizer_folder)
    return target
