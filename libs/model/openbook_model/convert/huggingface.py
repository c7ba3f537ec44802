"""Retrofit: a decoder from a Hugging Face folder or a GGUF file, with RETRO parts that start at gate 0.

OFF, and ON as long as the gates are 0, the model computes what the original does. Families: Llama (also 3.1's rotary
scaling), Qwen 2 and 2.5, Qwen 3 (dense), GPT-2. Not supported, and refused by name: other rotary scalings, sliding
windows, mixtures of experts, quantised folders.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from openbook_core.config import FrozenConfig
from openbook_core.errors import CorruptError, InputError, NotFoundError
from openbook_model.config import EncoderConfig, Mlp, RetroConfig, RotaryScaling, default_cross_attention_layers
from openbook_model.convert.report import ConversionReport, common_dtype, fill
from openbook_model.model import RetroModel

_ACTIVATIONS: dict[str, Mlp] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_CACHES = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


class RetrofitOptions(FrozenConfig):
    """The RETRO parts that a plain decoder gets. The encoder is small by default: it reads k*r tokens per chunk.

    `cross_attention_layers`: None is NVIDIA's rule, () leaves a plain decoder.
    """

    chunk_length: PositiveInt = 64
    neighbor_length: PositiveInt = Field(default_factory=lambda data: 2 * data["chunk_length"])
    num_neighbors: PositiveInt = 2
    cross_attention_layers: tuple[PositiveInt, ...] | None = None
    encoder_width: PositiveInt = 256
    encoder_layers: PositiveInt = 2
    encoder_heads: PositiveInt = 4
    encoder_positions: Literal["none", "learned", "rotary"] = "rotary"
    conditioned: bool = False
    seed: int = 0


def convert_huggingface(
    source: Path,
    options: RetrofitOptions,
    *,
    dtype: torch.dtype | None = torch.float32,
    allow_unexpected: bool = False,
) -> tuple[RetroModel, ConversionReport]:
    """The retrofitted model of a folder or .gguf file, read without network or remote code, and the account of all
    parameters. A `dtype` of None is the source's own (of a .gguf file float32).

    Raises NotFoundError, CorruptError, or InputError naming an unsupported family, setting or tensor.
    """
    theirs, foreign, stray = _read(source, dtype)
    family = theirs.get("model_type")
    if family not in _FAMILIES:
        raise InputError(
            f"{source} holds a model of type {family!r}; supported: {', '.join(sorted(_FAMILIES))}", field="source"
        )
    decoder_settings, rename = _FAMILIES[family]
    settings = decoder_settings(theirs)
    config = RetroConfig.parse({**settings, **retro_settings(settings["num_layers"], options)}, source=str(source))
    tensors, unexpected = rename(foreign, config)
    model = RetroModel.allocate(config, dtype or common_dtype(foreign))
    report = fill(
        model,
        tensors,
        unexpected=(*unexpected, *(name for name in stray if not name.endswith(_CACHES))),
        ignored=tuple(name for name in stray if name.endswith(_CACHES)),
        may_be_new=retro_parts(model),
        allow_unexpected=allow_unexpected,
        seed=options.seed,
    )
    return model.eval(), report


def _read(source: Path, dtype: torch.dtype | None) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Their configuration, their tensors, and the names that are stored and not in their model, by transformers."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not source.exists():
        raise NotFoundError(f"no model at {source}", field="source")
    folder, file = (source.parent, source.name) if source.is_file() else (source, None)
    if file is None:
        _check_folder(source)
    wanted = dtype or ("auto" if file is None else torch.float32)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=wanted, local_files_only=True, output_loading_info=True
        )
    except (SafetensorError, EOFError) as error:
        raise CorruptError(f"{source} is truncated: {error}; fetch it again", field="source") from error
    except UnpicklingError as error:  # transformers reads .bin files with torch's restricted unpickler
        raise InputError(
            f"{source} holds a pickle that wants to make or run what no weights need, so it was not read; give a folder with "
            "safetensors",
            field="source",
        ) from error
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, struct.error, StrictDataclassError) as error:
        raise InputError(f"{source} cannot be read as a causal language model: {error}", field="source") from error
    model, info = loaded
    missing, mismatched = sorted(info["missing_keys"]), sorted(str(item) for item in info["mismatched_keys"])
    if missing or mismatched:
        raise InputError(
            f"{source} does not fit its configuration: missing {missing[:5]}, of another shape {mismatched[:5]}",
            field="source",
        )
    settings = model.config.to_dict()
    tensors = {name: value.detach() for name, value in model.state_dict().items()}
    if settings.get("tie_word_embeddings", True):
        tensors.pop("lm_head.weight", None)
    return settings, tensors, sorted(info["unexpected_keys"])


def _check_folder(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise NotFoundError(f"{folder} holds no config.json", field="source")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        family = settings.get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise InputError(f"{path} is not a JSON object: {error}", field="source") from error
    if family not in _FAMILIES:
        raise InputError(
            f"{folder} holds a model of type {family!r}; supported: {', '.join(sorted(_FAMILIES))}", field="source"
        )
    if settings.get("quantization_config"):
        raise InputError(f"{folder} holds quantised weights; give the original ones", field="source")


def retro_parts(model: RetroModel) -> frozenset[str]:
    """The parameters that a plain decoder does not have."""
    names = (name for name, _ in model.named_parameters())
    return frozenset(name for name in names if name.startswith("encoder.") or ".cross" in name or ".gate" in name)


def retro_settings(num_layers: int, options: RetrofitOptions) -> dict[str, Any]:
    """The part of a RetroConfig that `options` decide."""
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
    _require(rope, "partial_rotary_factor", 1.0)
    if theirs.get("use_sliding_window") or "sliding_attention" in (theirs.get("layer_types") or ()):
        raise InputError("use_sliding_window: sliding-window attention is not supported", field="source")
    heads = theirs["num_attention_heads"]
    family = theirs["model_type"]
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
        "rotary_base": rope["rope_theta"],
        "rotary_scaling": _rotary_scaling(rope),
        "qk_norm": family == "qwen3",
        "mlp": "swiglu",
        "qkv_bias": family == "qwen2" or bool(theirs.get("attention_bias")),
        "output_bias": bool(theirs.get("attention_bias")),
        "mlp_bias": bool(theirs.get("mlp_bias")),
        "tied_embeddings": bool(theirs["tie_word_embeddings"]),
    }


def _rotary_scaling(rope: Mapping[str, Any]) -> RotaryScaling | None:
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind != "llama3":
        raise InputError(f"rope_type {kind!r} is not supported, only 'default' and 'llama3'", field="source")
    return RotaryScaling(
        factor=rope["factor"],
        low_frequency_factor=rope["low_freq_factor"],
        high_frequency_factor=rope["high_freq_factor"],
        original_positions=rope["original_max_position_embeddings"],
    )


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
        take(f"{ours}.attention.query_norm", f"{theirs}.self_attn.q_norm")
        take(f"{ours}.attention.key_norm", f"{theirs}.self_attn.k_norm")
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
    "qwen3": (_llama_settings, _rename_llama),
    "gpt2": (_gpt2_settings, _rename_gpt2),
}
