"""Import of NVIDIA's Retro weights under their Megatron names, core and legacy, into a RetroModel.

The source is a folder with `config.json` (hyper-parameters under NVIDIA's names) and a safetensors file. Differences
of the two code bases: names, and what the encoder's cross attention is added to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from openbook_core.errors import CorruptError, InputError, NotFoundError
from openbook_model.config import EncoderConfig, Mlp, RetroConfig
from openbook_model.convert.report import ConversionReport, fill
from openbook_model.model import RetroModel

_MLPS: dict[str, Mlp] = {"gelu": "gelu", "swiglu": "swiglu"}
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


def convert_megatron(folder: Path) -> tuple[RetroModel, ConversionReport]:
    """The model (float32) of a folder, and the account of its tensors.

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
    model = RetroModel.allocate(config)
    tensors, unexpected, ignored = {}, [], []
    for name, tensor in source.items():
        target = target_name(name, config)
        if name.endswith("_extra_state"):
            ignored.append(name)
        elif target is None:
            unexpected.append(name)
        else:
            tensors[target] = regroup(target, tensor, config)
    return model, fill(model, tensors, unexpected=tuple(unexpected), ignored=tuple(ignored))


def megatron_config(settings: Mapping[str, Any]) -> RetroConfig:
    """Our configuration for NVIDIA's hyper-parameters; raises InputError naming a missing or unknown one."""

    def get(key: str) -> Any:
        if key not in settings:
            raise InputError(f"config.json has no {key!r}", field=key)
        return settings[key]

    activation = get("activation")
    if activation not in _MLPS:
        raise InputError(f"activation {activation!r} is not one of {', '.join(_MLPS)}", field="activation")
    rotary = get("position_embedding") == "rope"
    bias = get("add_bias_linear")
    normalised = get("encoder_cross_attention_residual") == "normalised"
    encoder = EncoderConfig(
        hidden_size=get("hidden_size"),
        num_heads=get("num_attention_heads"),
        num_layers=get("encoder_num_layers"),
        head_dim=get("head_dim"),
        ffn_hidden_size=get("ffn_hidden_size"),
        positions="none" if rotary else "shared",
        bias=bias,
        conditioned=True,
        cross_attention_layers=get("encoder_cross_attention_layers_1based"),
        cross_attention_residual="normalised" if normalised else "residual",
        final_norm=False,
    )
    return RetroConfig(
        vocab_size=settings.get("padded_vocab_size", get("vocab_size")),
        hidden_size=get("hidden_size"),
        num_layers=get("num_layers"),
        num_heads=get("num_attention_heads"),
        head_dim=get("head_dim"),
        ffn_hidden_size=get("ffn_hidden_size"),
        max_positions=get("max_position_embeddings"),
        norm="layernorm1p" if get("layernorm_zero_centered_gamma") else "layernorm",
        norm_epsilon=get("layernorm_epsilon"),
        norm_bias=True,
        positions="rotary" if rotary else "learned",
        rotary_fraction=get("rotary_percent") if rotary else 1.0,
        rotary_base=get("rotary_base") if rotary else 10000.0,
        mlp=_MLPS[activation],
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        cross_attention_bias=bias,
        tied_embeddings=get("tied_embeddings"),
        chunk_length=get("chunk_length"),
        neighbor_length=get("retrieved_length"),
        num_neighbors=get("num_neighbors"),
        neighbor_padding="attended",
        cross_attention_layers=get("cross_attention_layers_1based"),
        gate=get("retro_attention_gate"),
        encoder=encoder,
    )


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
