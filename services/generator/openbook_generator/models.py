"""The model to serve, with its adapter."""

from __future__ import annotations

import torch

from openbook_core.tokenizer import Tokenizer
from openbook_generator.config import GeneratorConfig
from openbook_model import RetroModel
from openbook_model.adapter import load_adapted, read_prompt
from openbook_model.precision import probe_precision
from openbook_model.resolve import resolve_folder


def load_model(config: GeneratorConfig) -> tuple[RetroModel, Tokenizer]:
    """The model in its serving dtype, and its tokenizer. Errors as in `resolve_folder` and `load_adapted`."""
    folder = resolve_folder(config.model)
    dtype = probe_precision().dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    return load_adapted(folder, dtype, config.adapter), Tokenizer.load(folder)


def with_adapter_prompt(config: GeneratorConfig) -> GeneratorConfig:
    """The configuration with the prompt's settings of its adapter, below those that it sets itself. Raises InputError."""
    if config.adapter is None:
        return config
    prompt = config.prompt.over(read_prompt(config.adapter), str(config.adapter))
    return config.model_copy(update={"prompt": prompt})
