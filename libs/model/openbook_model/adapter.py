"""LoRA adapters as folders in peft's layout: adapter_config.json, adapter_model.safetensors, and the prompt's settings.

`lora_A.weight` is [r, in], `lora_B.weight` [out, r]; a projection's weight grows by alpha / r * B A.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from openbook_core.errors import ConflictError, CorruptError, MismatchError, NotFoundError, Reason
from openbook_model.checkpoint import load, write_prompt
from openbook_model.folders import written_whole
from openbook_model.model import RetroModel
from openbook_model.tensor_file import write_tensors

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def save_adapter(
    folder: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], rank: int, alpha: int, base: str, prompt: dict[str, Any]
) -> None:
    """Write `pairs` (projection's name -> A [r, in], B [out, r]) in bfloat16, by one rename.

    Replaces an older adapter; raises ConflictError if `folder` is anything else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file():
        raise ConflictError(
            f"{folder} exists and is not an adapter; choose another path or remove it",
            field="path",
            reason=Reason.ALREADY_EXISTS,
        )
    tensors = {}
    for name, (down, up) in pairs.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = down.detach().to(torch.bfloat16).contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up.detach().to(torch.bfloat16).contiguous()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(pairs),
    }
    with written_whole(folder) as draft:
        write_tensors(tensors, draft / WEIGHTS_FILE, metadata={"format": "pt"})
        (draft / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        write_prompt(draft, prompt)


def load_adapted(folder: Path, dtype: torch.dtype, adapter: Path | None) -> RetroModel:
    """The model in `folder` with `adapter` merged, if any, in `dtype`. Errors as in `load` and `merge_adapter`."""
    if adapter is None:
        return load(folder, dtype)
    model = load(folder, torch.float32)
    merge_adapter(model, adapter)
    return model.to(dtype)


@torch.no_grad()
def merge_adapter(model: RetroModel, folder: Path) -> None:
    """Add the adapter to the model's weights in place, computed in float32.

    Raises NotFoundError for a folder that is none, CorruptError for damage, MismatchError for another model's adapter.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise NotFoundError(f"{folder} is no adapter: {name} is missing", field="adapter")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        scale = config["lora_alpha"] / config["r"]
        tensors = load_file(folder / WEIGHTS_FILE)
        names = [key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") for key in tensors if ".lora_A." in key]
        pairs = {
            name: (tensors[f"{_PREFIX}{name}.lora_A.weight"], tensors[f"{_PREFIX}{name}.lora_B.weight"])
            for name in names
        }
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CorruptError(f"adapter {folder} cannot be read: {error!r}", field="adapter") from error
    if not pairs:
        raise CorruptError(f"adapter {folder} changes no projection: its weights hold no lora_A", field="adapter")
    weights = dict(model.named_parameters())
    for name, (down, up) in pairs.items():
        weight = weights.get(f"{name}.weight")
        if weight is None or weight.shape != (up.shape[0], down.shape[1]):
            have = "absent" if weight is None else list(weight.shape)
            raise MismatchError(
                f"adapter {folder} was made for another model: {name} should be {[up.shape[0], down.shape[1]]}, is {have}"
            )
    for name, (down, up) in pairs.items():
        weight = weights[f"{name}.weight"]
        weight.copy_(weight.float() + scale * (up.float() @ down.float()).to(weight.device))
