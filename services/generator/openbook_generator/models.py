"""The model to serve, with its adapter."""

from __future__ import annotations

import torch

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer
from openbook_generator.config import GeneratorConfig
from openbook_model import RetroModel, load
from openbook_model.adapter import merge_adapter, read_prompt
from openbook_model.precision import probe_precision
from openbook_model.resolve import resolve_folder
from openbook_prompt.settings import PromptSettings


def load_model(config: GeneratorConfig) -> tuple[RetroModel, Tokenizer]:
    """The model in its serving dtype, and its tokenizer. Errors as in `resolve_folder`, `load`, `merge_adapter`."""
    folder = resolve_folder(config.model)
    dtype = probe_precision().dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    if config.adapter is None:
        return load(folder, dtype), Tokenizer.load(folder)
    model = load(folder, torch.float32)
    merge_adapter(model, config.adapter)
    return model.to(dtype), Tokenizer.load(folder)


def with_adapter_prompt(config: GeneratorConfig) -> GeneratorConfig:
    """The configuration with the prompt's settings of its adapter, below those that it sets itself. Raises InputError."""
    stored = read_prompt(config.adapter) if config.adapter else None
    if stored is None:
        return config
    try:
        prompt = PromptSettings.model_validate(stored | config.prompt.model_dump(exclude_unset=True))
    except ValueError as error:
        raise InputError(f"{config.adapter}: its prompt settings cannot be used: {error}", field="adapter") from error
    return config.model_copy(update={"prompt": prompt})
