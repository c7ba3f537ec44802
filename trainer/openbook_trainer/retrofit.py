"""The weights that a run starts from, and which of them it trains at which rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from openbook_core.errors import ConfigError, InputError
from openbook_core.fingerprint import require_equal
from openbook_core.tokenizer import Tokenizer
from openbook_model import RetroModel, cross_attention_state, initialise, load, weights_hash
from openbook_model.convert.huggingface import retro_parts
from openbook_model.resolve import resolve_folder
from openbook_trainer.config import TrainConfig
from openbook_trainer.initial import reads_neighbors


def starting_model(config: TrainConfig, tokenizer: Tokenizer) -> tuple[RetroModel, str]:
    """The model before the first step, float32, and its base's hash: "" where all of it is random.

    With a base, the model computes at first exactly what the base does, ON and OFF; a frozen base needs no gradient.
    Raises MismatchError for another tokenizer than the base's, ConfigError for a base that reads neighbours already,
    and what `load` raises.
    """
    model = RetroModel.allocate(config.model)
    if config.init is None:
        initialise(model, config.seed)
        return model, ""
    folder = resolve_folder(config.init.base)
    _require_tokenizer(folder, config, tokenizer)
    base = load(folder)
    if cross_attention_state(base) == "on":
        raise ConfigError(reads_neighbors(config.init.base), field="init.from")
    new = retro_parts(model)
    initialise(model, config.seed, only=new)
    weights: Mapping[str, torch.Tensor] = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in new:
                parameter.copy_(weights[name])
            elif config.model.gate != "learned" and ".cross.output." in name and name.startswith("blocks."):
                parameter.zero_()
    if config.init.base_learning_rate is None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in new)
    return model, weights_hash(base)


def rate_scale(config: TrainConfig, model: RetroModel) -> dict[str, float]:
    """Of the parameters that learn at another rate than `optimiser.learning_rate`: theirs over that one."""
    if config.init is None or config.init.base_learning_rate is None:
        return {}
    scale = config.init.base_learning_rate / config.optimiser.learning_rate
    new = retro_parts(model)
    return {name: scale for name, _ in model.named_parameters() if name not in new}


def _require_tokenizer(folder: Path, config: TrainConfig, tokenizer: Tokenizer) -> None:
    assert config.init is not None
    try:
        theirs = Tokenizer.load(folder)
    except InputError as error:
        raise InputError(
            f"init.from: {config.init.base} brings no tokenizer ({error.message}), so corpus.tokenizer cannot be compared "
            "with it; convert it again with --tokenizer",
            field="init.from",
        ) from error
    require_equal("tokenizer", tokenizer.fingerprint, theirs.fingerprint, "corpus.tokenizer", config.init.base)
