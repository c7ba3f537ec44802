"""The folder of ours for a model's name or path: one that is ours already, or a conversion kept in the cache folder."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from openbook_core.tokenizer import Tokenizer
from openbook_core.weights import resolve_model
from openbook_model.checkpoint import CONFIG_FILE, FORMAT, FORMAT_VERSION, save

# Raised whenever the same source would be converted to another model, so that kept conversions are made anew.
CONVERSION_VERSION = 1
_CONVERTERS = ("transformers", "tokenizers", "gguf")


def resolve_folder(name: str) -> Path:
    """A folder that `openbook_model.load` and `Tokenizer.load` read.

    Anything but a folder of ours is converted once, into OPENBOOK_CACHE (default ~/.cache/openbook); its gates are 0.
    Errors as in `openbook_core.weights.resolve_model` and the conversion.
    """
    source = resolve_model(name)
    return source if _is_ours(source) else _converted(source)


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
