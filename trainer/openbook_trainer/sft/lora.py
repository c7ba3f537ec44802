"""LoRA through peft on the decoder's projections."""

from __future__ import annotations

import re

from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from openbook_model import RetroModel
from openbook_trainer.sft.config import LoraSettings


def projections(model: RetroModel) -> list[str]:
    """Names of the linear layers of self attention and feed-forward; cross attention and encoder are left alone."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and "cross" not in name
    ]


def inject(model: RetroModel, settings: LoraSettings) -> None:
    """Add the adapter in place (it starts as no change) and freeze everything else. Call after torch.manual_seed."""
    whole_names = "|".join(map(re.escape, projections(model)))  # peft takes names in a list as endings, too
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=whole_names)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def adapter_pairs(model: RetroModel) -> dict[str, tuple[Tensor, Tensor]]:
    """A [r, in] and B [out, r] of each projection, by its name in the model without an adapter."""
    weights, ending = dict(model.named_parameters()), ".lora_A.default.weight"
    names = [name.removesuffix(ending) for name in weights if name.endswith(ending)]
    return {name: (weights[name + ending], weights[f"{name}.lora_B.default.weight"]) for name in names}
