"""Import of NVIDIA's Retro weights under their Megatron names, core and legacy, into a RetroModel.

The source of `convert_megatron` is a folder with `config.json` (hyper-parameters under NVIDIA's names) and a safetensors
file; `openbook_model.convert.legacy` reads NVIDIA's own files. Differences of the two code bases: names, and what the
encoder's cross attention is added to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from openbook_core.errors import CorruptError, InputError, NotFoundError
from openbook_model.config import Mlp, RetroConfig
from openbook_model.convert.report import ConversionReport, common_dtype, fill
from openbook_model.model import RetroModel

_MLPS: dict[str, Mlp] = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "swiglu": "swiglu"}
# States of layers, which are empty, and a table that the positions give.
_HOLD_NOTHING = ("_extra_state", "rotary_pos_emb.inv_freq")
_GLOBAL = (
    (r"embedding\.word_embeddings\.weight", "embedding.weight"),
    (r"embedding\.position_embeddings\.weight", "position_embedding.weight"),
    (r"(?:en|de)coder\.final_(?:layer)?norm\.(.*)", r"final_norm.\1"),
    (r"output_layer\.weight", "head.weight"),
)
_IN_LAYER = (
    (r"input_(?:layer)?norm", "attention_norm"),
    (r"self_attention\.(?:linear_qkv|query_key_value)", "attention.qkv"),
    (r"self_attention\.(?:linear_proj|dense)", "attention.output"),
    (r"pre_cross_attn_layernorm", "cross_norm"),
    (r"(?:cross_attention\.attn\.linear_q|inter_attention\.query)", "cross.query"),
    (r"(?:cross_attention\.attn\.linear_kv|inter_attention\.key_value)", "cross.key_value"),
    (r"(?:cross_attention\.attn\.linear_proj|inter_attention\.dense)", "cross.output"),
    (r"(?:pre_mlp_layernorm(?:\.norm)?|post_inter_attention_(?:layer)?norm)", "mlp_norm"),
    (r"mlp\.(?:linear_fc1|dense_h_to_4h)", "mlp.up"),
    (r"mlp\.(?:linear_fc2|dense_4h_to_h)", "mlp.down"),
)
_ENCODER_LAYER = re.compile(
    r"(?:en|de)coder\.layers\.\d+\.(?:cross_attention\.encoder|retriever)\.layers\.(\d+)\.(.+)\.(weight|bias)"
)
_DECODER_LAYER = re.compile(r"(?:en|de)coder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def convert_megatron(
    folder: Path, *, dtype: torch.dtype | None = torch.float32, allow_unexpected: bool = False
) -> tuple[RetroModel, ConversionReport]:
    """The model of a folder, and the account of its tensors. A `dtype` of None is the source's own.

    Raises NotFoundError, CorruptError or InputError naming the file, the setting or the tensor at fault.
    """
    settings = _read_settings(folder)
    config = megatron_config(settings)
    path = folder / str(settings.get("weights_file", "weights.safetensors"))
    if not path.is_file():
        raise NotFoundError(f"no weights at {path}", field="source")
    try:
        source = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"{path} is not a whole safetensors file: {error}", field="source") from error
    model = RetroModel.allocate(config, dtype or common_dtype(source))
    names, unexpected, ignored = sort_names(source, config)
    report = fill(
        model,
        Regrouped(names, source.__getitem__, config),
        unexpected=unexpected,
        ignored=ignored,
        allow_unexpected=allow_unexpected,
    )
    return model.eval(), report


class Regrouped(Mapping[str, Tensor]):
    """Tensors under our names, each read and put into our order when it is asked for.

    `names`: ours -> the source's.
    """

    def __init__(self, names: Mapping[str, str], read: Callable[[str], Tensor], config: RetroConfig) -> None:
        self._names, self._read, self._config = names, read, config

    def __getitem__(self, target: str) -> Tensor:
        return regroup(target, self._read(self._names[target]), self._config)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def sort_names(source: Iterable[str], config: RetroConfig) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """The source's names by ours, those without a place, and those that hold nothing."""
    names, unexpected, ignored = {}, [], []
    for name in source:
        target = target_name(name, config)
        if name.endswith(_HOLD_NOTHING):
            ignored.append(name)
        elif target is None or target in names:
            unexpected.append(name)
        else:
            names[target] = name
    return names, tuple(unexpected), tuple(ignored)


def megatron_config(settings: Mapping[str, Any]) -> RetroConfig:
    """Our configuration for NVIDIA's hyper-parameters.

    Raises InputError naming a missing or unknown one, ConfigError for values that do not go together.
    """
    rotary = _get(settings, "position_embedding") == "rope"
    bias = _get(settings, "add_bias_linear")
    normalised = _get(settings, "encoder_cross_attention_residual") == "normalised"
    encoder = {
        "hidden_size": _get(settings, "hidden_size"),
        "num_heads": _get(settings, "num_attention_heads"),
        "num_layers": _get(settings, "encoder_num_layers"),
        "head_dim": _get(settings, "head_dim"),
        "ffn_hidden_size": _get(settings, "ffn_hidden_size"),
        "positions": "none" if rotary else "shared",
        "bias": bias,
        "conditioned": True,
        "cross_attention_layers": _get(settings, "encoder_cross_attention_layers_1based"),
        "cross_attention_residual": "normalised" if normalised else "residual",
        "final_norm": False,
    }
    retro = {
        "cross_attention_bias": bias,
        "chunk_length": _get(settings, "chunk_length"),
        "neighbor_length": _get(settings, "retrieved_length"),
        "num_neighbors": _get(settings, "num_neighbors"),
        "neighbor_padding": "attended",
        "cross_attention_layers": _get(settings, "cross_attention_layers_1based"),
        "gate": _get(settings, "retro_attention_gate"),
        "encoder": encoder,
    }
    return RetroConfig.parse({**decoder_settings(settings), **retro}, source="the source's settings")


def decoder_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a RetroConfig that describes the decoder; errors as in `megatron_config`."""
    activation = _get(settings, "activation")
    if activation not in _MLPS:
        raise InputError(f"activation {activation!r} is not one of {', '.join(_MLPS)}", field="activation")
    rotary = _get(settings, "position_embedding") == "rope"
    bias = _get(settings, "add_bias_linear")
    norm = settings.get("norm", "layernorm1p" if _get(settings, "layernorm_zero_centered_gamma") else "layernorm")
    return {
        "vocab_size": settings.get("padded_vocab_size") or _get(settings, "vocab_size"),
        "hidden_size": _get(settings, "hidden_size"),
        "num_layers": _get(settings, "num_layers"),
        "num_heads": _get(settings, "num_attention_heads"),
        "head_dim": _get(settings, "head_dim"),
        "ffn_hidden_size": _get(settings, "ffn_hidden_size"),
        "max_positions": _get(settings, "max_position_embeddings"),
        "norm": norm,
        "norm_epsilon": _get(settings, "layernorm_epsilon"),
        "norm_bias": norm != "rmsnorm",
        "positions": "rotary" if rotary else "learned",
        "rotary_fraction": _get(settings, "rotary_percent") if rotary else 1.0,
        "rotary_base": _get(settings, "rotary_base") if rotary else 10000.0,
        "mlp": _MLPS[activation],
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": bias,
        "tied_embeddings": _get(settings, "tied_embeddings"),
    }


def _get(settings: Mapping[str, Any], key: str) -> Any:
    if key not in settings:
        raise InputError(f"the source's settings have no {key!r}", field=key)
    return settings[key]


def target_name(source: str, config: RetroConfig) -> str | None:
    """Our name of a Megatron parameter (core, legacy, and legacy before September 2023), or None."""
    name = source.removeprefix("language_model.")
    for pattern, target in _GLOBAL:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, target, name)
    if found := _ENCODER_LAYER.fullmatch(name):
        prefix, cross_layers = "encoder.blocks", config.encoder.cross_attention_layers
    elif found := _DECODER_LAYER.fullmatch(name):
        prefix, cross_layers = "blocks", config.cross_attention_layers
    else:
        return None
    layer, part, kind = found.groups()
    if re.fullmatch(r"post_attention_(?:layer)?norm", part):
        return f"{prefix}.{layer}.{'cross_norm' if int(layer) + 1 in cross_layers else 'mlp_norm'}.{kind}"
    for pattern, target in _IN_LAYER:
        if re.fullmatch(pattern, part):
            return f"{prefix}.{layer}.{target}.{kind}"
    return None


def regroup(target: str, tensor: Tensor, config: RetroConfig) -> Tensor:
    """Rows of fused projections, stored per head as [q, k, v] or [k, v], in our order: all q, all k, all v."""
    groups = 3 if ".qkv." in target else 2 if ".key_value." in target else 1
    if groups == 1:
        return tensor
    rest = tensor.shape[1:]
    if len(tensor) % (groups * config.head_dim):
        raise InputError(
            f"{target}: {len(tensor)} rows are no whole heads of {groups} x {config.head_dim} channels", field="source"
        )
    return tensor.reshape(-1, groups, config.head_dim, *rest).transpose(0, 1).reshape(-1, *rest).contiguous()


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise NotFoundError(f"{folder} holds no config.json", field="source")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}", field="source") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} must hold an object", field="source")
    return settings
