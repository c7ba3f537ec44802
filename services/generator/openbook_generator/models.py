"""The model to serve, and the tokens that end its replies."""

from __future__ import annotations

import torch

from openbook_core.tokenizer import Tokenizer
from openbook_generator.config import GeneratorConfig
from openbook_model import RetroModel, load
from openbook_model.precision import probe_precision
from openbook_model.resolve import resolve_folder

_END_MARKERS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>")


def load_model(config: GeneratorConfig) -> tuple[RetroModel, Tokenizer]:
    """The model in its serving dtype, and its tokenizer. Errors as in `resolve_folder` and `load`."""
    folder = resolve_folder(config.model)
    dtype = probe_precision().dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    return load(folder, dtype), Tokenizer.load(folder)


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The end token, and the usual end markers that the vocabulary has."""
    found = [tokenizer.eos_id, *(tokenizer.token_id(marker) for marker in _END_MARKERS)]
    return frozenset(token for token in found if token is not None)
