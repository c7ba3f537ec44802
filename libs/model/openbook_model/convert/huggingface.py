"""Retrofit: a decoder from a Hugging Face folder or a GGUF file, with RETRO parts that start at gate 0.

OFF, and ON as long as the gates are 0, the model computes what the original does. Families: Llama, Qwen2, GPT-2.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from openbook_core.config import FrozenConfig
from openbook_core.errors import CorruptError, InputError, NotFoundError
from openbook_model.config import EncoderConfig, Mlp, RetroConfig, default_cross_attention_layers
from openbook_model.convert.report import ConversionReport, fill
from openbook_model.model import RetroModel

_ACTIVATIONS: dict[str, Mlp] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_CACHES = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


class RetrofitOptions(FrozenConfig):
    """The RETRO parts that a plain decoder gets. The encoder is small by default: it reads k*r tokens per chunk."""

    chunk_length: PositiveInt = 64
    neighbor_length: PositiveInt = 128
    num_neighbors: PositiveInt = 2
    cross_attention_layers: tuple[PositiveInt, ...] | None = None
    encoder_width: PositiveInt = 256
    encoder_layers: PositiveInt = 2
    encoder_heads: PositiveInt = 4
    encoder_positions: Literal["none", "learned", "rotary"] = "rotary"
    conditioned: bool = False
    seed: int = 0


def convert_huggingface(source: Path, options: RetrofitOptions) -> tuple[RetroModel, ConversionReport]:
    """The retrofitted model (float32) of a folder or .gguf file, read without network or remote code, and the account
    of all parameters.

    Raises NotFoundError, CorruptError, or InputError naming an unsupported family, setting or tensor.
    """
    theirs, foreign, ignored = _read(source)
    family = theirs.get("model_type")
    if family not in _FAMILIES:
        raise InputError(
            f"{source} holds a model of type {family!r}; supported: {', '.join(sorted(_FAMILIES))}", field="source"
        )
    decoder_settings, rename = _FAMILIES[family]
    config = RetroConfig.parse({**decoder_settings(theirs), **_retro_settings(theirs, options)}, source=str(source))
    tensors, unexpected = rename(foreign, config)
    model = RetroModel.allocate(config)
    retro_parts = frozenset(
        name
        for name, _ in model.named_parameters()
        if name.startswith("encoder.") or ".cross" in name or ".gate" in name
    )
    report = fill(
        model,
        tensors,
        unexpected=tuple(unexpected),
        ignored=tuple(ignored),
        may_be_new=retro_parts,
        seed=options.seed,
    )
    return model.eval(), report


def _read(source: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Their configuration, their tensors in float32 and the names of stored caches, by transformers."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not source.exists():
        raise NotFoundError(f"no model at {source}", field="source")
    folder, file = (source.parent, source.name) if source.is_file() else (source, None)
    if file is None:
        _check_folder(source)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (SafetensorError, EOFError) as error:
        raise CorruptError(f"{source} is truncated: {error}; fetch it again", field="source") from error
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, struct.error) as error:
        raise InputError(f"{source} cannot be read as a causal language model: {error}", field="source") from error
    model, info = loaded
    missing, mismatched = sorted(info["missing_keys"]), sorted(str(item) for item in info["mismatched_keys"])
    stray = sorted(info["unexpected_keys"])
    ignored = [name for name in stray if name.endswith(_CACHES)]
    unknown = [name for name in stray if not name.endswith(_CACHES)]
    if missing or mismatched or unknown:
        raise InputError(
            f"{source} does not fit its configuration: missing {missing[:5]}, of another shape {mismatched[:5]}, "
            f"unexpected {unknown[:5]}",
            field="source",
        )
    settings = model.config.to_dict()
    tensors = {name: value.detach() for name, value in model.state_dict().items()}
    if settings.get("tie_word_embeddings", True):
        tensors.pop("lm_head.weight", None)
    return settings, tensors, ignored


def _check_folder(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise NotFoundError(f"{folder} holds no config.json", field="source")
    try:
        family = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise InputError(f"{path} is not a JSON object: {error}", field="source") from error
    if family not in _FAMILIES:
        raise InputError(
            f"{folder} holds a model of type {family!r}; supported: {', '.join(sorted(_FAMILIES))}", field="source"
        )


def _retro_settings(theirs: Mapping[str, Any], options: RetrofitOptions) -> dict[str, Any]:
    num_layers = theirs.get("num_hidden_layers") or theirs["n_layer"]
    layers = options.cross_attention_layers
    return {
        "chunk_length": options.chunk_length,
        "neighbor_length": options.neighbor_length,
        "num_neighbors": options.num_neighbors,
        "cross_attention_layers": default_cross_attention_layers(num_layers) if layers is None else layers,
        "gate": "learned",
        "encoder": EncoderConfig(
            hidden_size=options.encoder_width,
            num_heads=options.encoder_heads,
            num_layers=options.encoder_layers,
            positions=options.encoder_positions,
            conditioned=options.conditioned,
        ),
    }


def _llama_settings(theirs: Mapping[str, Any]) -> dict[str, Any]:
    rope = theirs.get("rope_parameters") or {}
    _require(theirs, "hidden_act", "silu")
    _require(rope, "rope_type", "default")
    if theirs.get("use_sliding_window"):
        raise InputError("use_sliding_window: sliding-window attention is not supported", field="source")
    heads = theirs["num_attention_heads"]
    qwen = theirs["model_type"] == "qwen2"
    return {
        "vocab_size": theirs["vocab_size"],
        "hidden_size": theirs["hidden_size"],
        "num_layers": theirs["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": theirs.get("num_key_value_heads") or heads,
        "head_dim": theirs.get("head_dim") or theirs["hidden_size"] // heads,
        "ffn_hidden_size": theirs["intermediate_size"],
        "max_positions": theirs["max_position_embeddings"],
        "norm": "rmsnorm",
        "norm_epsilon": theirs["rms_norm_eps"],
        "positions": "rotary",
        "rotary_fraction": rope.get("partial_rotary_factor", 1.0),
        "rotary_base": rope["rope_theta"],
        "mlp": "swiglu",
        "qkv_bias": qwen or bool(theirs.get("attention_bias")),
        "output_bias": bool(theirs.get("attention_bias")),
        "mlp_bias": bool(theirs.get("mlp_bias")),
        "tied_embeddings": bool(theirs["tie_word_embeddings"]),
    }


def _gpt2_settings(theirs: Mapping[str, Any]) -> dict[str, Any]:
    _require(theirs, "scale_attn_weights", True)
    _require(theirs, "scale_attn_by_inverse_layer_idx", False)
    activation = theirs["activation_function"]
    if activation not in _ACTIVATIONS:
        raise InputError(f"activation_function {activation!r} is not supported", field="source")
    return {
        "vocab_size": theirs["vocab_size"],
        "hidden_size": theirs["n_embd"],
        "num_layers": theirs["n_layer"],
        "num_heads": theirs["n_head"],
        "ffn_hidden_size": theirs.get("n_inner") or 4 * theirs["n_embd"],
        "max_positions": theirs["n_positions"],
        "norm": "layernorm",
        "norm_epsilon": theirs["layer_norm_epsilon"],
        "norm_bias": True,
        "positions": "learned",
        "mlp": _ACTIVATIONS[activation],
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "tied_embeddings": bool(theirs.get("tie_word_embeddings", True)),
    }


def _rename_llama(foreign: Mapping[str, Tensor], config: RetroConfig) -> tuple[dict[str, Tensor], list[str]]:
    rest = dict(foreign)
    found: dict[str, Tensor] = {}

    def take(target: str, *sources: str) -> None:
        for kind in ("weight", "bias"):
            if f"{sources[0]}.{kind}" in rest:
                found[f"{target}.{kind}"] = torch.cat([rest.pop(f"{source}.{kind}") for source in sources])

    take("embedding", "model.embed_tokens")
    take("final_norm", "model.norm")
    take("head", "lm_head")
    for layer in range(config.num_layers):
        theirs, ours = f"model.layers.{layer}", f"blocks.{layer}"
        take(f"{ours}.attention_norm", f"{theirs}.input_layernorm")
        take(f"{ours}.attention.qkv", *(f"{theirs}.self_attn.{part}_proj" for part in "qkv"))
        take(f"{ours}.attention.output", f"{theirs}.self_attn.o_proj")
        take(f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm")
        take(f"{ours}.mlp.up", f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj")
        take(f"{ours}.mlp.down", f"{theirs}.mlp.down_proj")
    return found, list(rest)


_GPT2_LAYER = {
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.output",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}


def _rename_gpt2(foreign: Mapping[str, Tensor], config: RetroConfig) -> tuple[dict[str, Tensor], list[str]]:
    names = {
        "transformer.wte": "embedding",
        "transformer.wpe": "position_embedding",
        "transformer.ln_f": "final_norm",
        "lm_head": "head",
    }
    for layer in range(config.num_layers):
        names |= {f"transformer.h.{layer}.{theirs}": f"blocks.{layer}.{ours}" for theirs, ours in _GPT2_LAYER.items()}
    found, unexpected = {}, []
    for source, tensor in foreign.items():
        stem, _, kind = source.rpartition(".")
        if stem not in names:
            unexpected.append(source)
            continue
        stored_transposed = kind == "weight" and ".c_" in stem
        found[f"{names[stem]}.{kind}"] = tensor.T if stored_transposed else tensor
    return found, unexpected


def _require(settings: Mapping[str, Any], key: str, value: object) -> None:
    given = settings.get(key, value)
    if given != value:
        raise InputError(f"{key} {given!r} is not supported, only {value!r}", field="source")


_Settings = Callable[[Mapping[str, Any]], dict[str, Any]]
_Rename = Callable[[Mapping[str, Tensor], RetroConfig], tuple[dict[str, Tensor], list[str]]]
_FAMILIES: dict[str, tuple[_Settings, _Rename]] = {
    "llama": (_llama_settings, _rename_llama),
    "qwen2": (_llama_settings, _rename_llama),
    "gpt2": (_gpt2_settings, _rename_gpt2),
}
