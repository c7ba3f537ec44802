"""The model to serve, with its adapter."""

from __future__ import annotations

import torch

from openbook_core.tokenizer import Tokenizer
from openbook_generator.config import GeneratorConfig
from openbook_model import RetroModel
from openbook_model.adapter import load_adapted
from openbook_model.checkpoint import read_prompt
from openbook_model.precision import probe_precision
from openbook_model.resolve import resolve_folder


def load_model(config: GeneratorConfig) -> tuple[RetroModel, Tokenizer]:
    """The model in its serving dtype, and its tokenizer. Errors as in `resolve_folder` and `load_adapted`."""
    folder = resolve_folder(config.model)
    dtype = probe_precision().dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    return load_adapted(folder, dtype, config.adapter), Tokenizer.load(folder)


def with_stored_prompt(config: GeneratorConfig) -> GeneratorConfig:
    """The configuration with the prompt that its adapter or model was tuned with, below what it sets itself.

    Raises InputError.
    """
    source = config.adapter or resolve_folder(config.model)
    return config.model_copy(update={"prompt": config.prompt.over(read_prompt(source), str(source))})
