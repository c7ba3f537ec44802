"""The decoder of a model as one of transformers' own: GPT-2, Llama, Qwen 2 or 3, or StableLM for NVIDIA's architecture.

The mirror image of `openbook_model.convert.huggingface`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer
from openbook_model.checkpoint import WEIGHTS_FILE, load, read_config
from openbook_model.config import RetroConfig
from openbook_model.model import RetroModel


def write_decoder(source: Path, folder: Path) -> str:
    """config.json and weights of the decoder of the model folder `source`; the name of the class.

    In the type of its weights, but LayerNorm-1p's model in float32: it stores the difference to 1, and a bfloat16 of the
    sum would be rounded.
    """
    import transformers

    one_p = read_config(source).norm == "layernorm1p"
    model = load(source, torch.float32 if one_p else stored_dtype(source))
    family = _family(model.config)
    settings, tensors = (_gpt2 if family == "GPT2" else _llama_like)(family, model)
    settings |= {**_special_tokens(source), "dtype": str(model.embedding.weight.dtype).removeprefix("torch.")}
    config = getattr(transformers, f"{family}Config")(**settings)
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    with torch.device("meta"):
        theirs = getattr(transformers, name)(config)
    missing, unexpected = theirs.load_state_dict(tensors, strict=False, assign=True)
    assert not unexpected, unexpected
    assert set(missing) <= ({"lm_head.weight"} if model.head is None else set()), missing
    theirs.tie_weights()
    theirs.save_pretrained(folder)
    return name


def stored_dtype(source: Path) -> torch.dtype:
    """The one type of the weights in a model folder, float32 where there are several."""
    with safe_open(source / WEIGHTS_FILE, framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get("".join(kinds), torch.float32)


def _family(config: RetroConfig) -> str:
    """The family of transformers that computes the same; raises InputError where there is none."""
    square = config.num_heads * config.head_dim == config.hidden_size
    biases = (config.qkv_bias, config.output_bias, config.mlp_bias)
    if config.positions == "learned" and config.norm == "layernorm" and config.norm_bias:
        if config.mlp != "swiglu" and all(biases) and square and config.num_kv_heads == config.num_heads:
            return "GPT2"
    elif config.positions == "rotary" and config.mlp == "swiglu" and config.norm == "rmsnorm":
        if config.rotary_fraction == 1.0:
            if config.qk_norm:
                return _only(biases in ((False,) * 3, (True, True, False)), "Qwen3", config)
            if biases == (True, False, False):
                return "Qwen2"
            return _only(config.qkv_bias == config.output_bias, "Llama", config)
    elif config.positions == "rotary" and config.mlp == "swiglu" and not config.qk_norm:
        return _only(not any(biases[1:]) and square and config.rotary_scaling is None, "StableLm", config)
    return _only(False, "", config)


def _only(possible: bool, family: str, config: RetroConfig) -> str:
    if possible:
        return family
    given = ", ".join(f"{name} {getattr(config, name)!r}" for name in _DECIDING)
    raise InputError(
        f"no decoder of transformers computes this combination: {given}; --to hf-retro exports any model", field="model"
    )


_DECIDING = (
    "norm",
    "norm_bias",
    "positions",
    "rotary_fraction",
    "rotary_scaling",
    "mlp",
    "qk_norm",
    "qkv_bias",
    "output_bias",
    "mlp_bias",
    "head_dim",
)


def _special_tokens(source: Path) -> dict[str, Any]:
    if not (source / "tokenizer.json").is_file():
        return {"bos_token_id": None, "eos_token_id": None}
    words = Tokenizer.load(source)
    return {"bos_token_id": words.token_id(words.bos_token), "eos_token_id": words.eos_id}


def _llama_like(family: str, model: RetroModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = model.config
    ours: dict[str, Tensor] = dict(model.named_parameters())
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rotary_base}
    if config.rotary_scaling is not None:
        scaling = config.rotary_scaling
        rope |= {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_frequency_factor}
        rope |= {"high_freq_factor": scaling.high_frequency_factor}
        rope |= {"original_max_position_embeddings": scaling.original_positions}
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_positions,
        "hidden_act": "silu",
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied_embeddings,
    }
    if family == "StableLm":
        rope["partial_rotary_factor"] = config.rotary_fraction
        settings |= {"layer_norm_eps": config.norm_epsilon, "use_qkv_bias": config.qkv_bias}
    else:
        settings |= {"rms_norm_eps": config.norm_epsilon, "head_dim": config.head_dim}
        if family != "Qwen2":
            settings["attention_bias"] = config.qkv_bias
        if family == "Llama":
            settings["mlp_bias"] = config.mlp_bias
    tensors: dict[str, Tensor] = {"model.embed_tokens.weight": ours["embedding.weight"]}
    if model.head is not None:
        tensors["lm_head.weight"] = ours["head.weight"]
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)

    def put(theirs: str, ours_name: str) -> None:
        for kind in ("weight", "bias"):
            if f"{ours_name}.{kind}" in ours:
                tensors[f"{theirs}.{kind}"] = ours[f"{ours_name}.{kind}"]

    def put_norm(theirs: str, ours_name: str) -> None:
        weight = ours[f"{ours_name}.weight"]
        tensors[f"{theirs}.weight"] = weight + 1 if config.norm == "layernorm1p" else weight
        if family == "StableLm":
            tensors[f"{theirs}.bias"] = ours.get(f"{ours_name}.bias", torch.zeros_like(weight))

    put_norm("model.norm", "final_norm")
    for layer in range(config.num_layers):
        theirs, block = f"model.layers.{layer}", f"blocks.{layer}"
        put_norm(f"{theirs}.input_layernorm", f"{block}.attention_norm")
        put_norm(f"{theirs}.post_attention_layernorm", f"{block}.mlp_norm")
        for kind in ("weight", "bias"):
            if f"{block}.attention.qkv.{kind}" in ours:
                rows = [count * config.head_dim for count in heads]
                parts = ours[f"{block}.attention.qkv.{kind}"].split(rows)
                for part, tensor in zip("qkv", parts, strict=True):
                    tensors[f"{theirs}.self_attn.{part}_proj.{kind}"] = tensor
            if f"{block}.mlp.up.{kind}" in ours:
                gate, value = ours[f"{block}.mlp.up.{kind}"].chunk(2)
                tensors[f"{theirs}.mlp.gate_proj.{kind}"], tensors[f"{theirs}.mlp.up_proj.{kind}"] = gate, value
        put(f"{theirs}.self_attn.o_proj", f"{block}.attention.output")
        put(f"{theirs}.self_attn.q_norm", f"{block}.attention.query_norm")
        put(f"{theirs}.self_attn.k_norm", f"{block}.attention.key_norm")
        put(f"{theirs}.mlp.down_proj", f"{block}.mlp.down")
    return settings, {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


_GPT2_LAYER = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


def _gpt2(family: str, model: RetroModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = model.config
    settings = {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ffn_hidden_size,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": "gelu_new" if config.mlp == "gelu_tanh" else "gelu",
        "tie_word_embeddings": config.tied_embeddings,
    }
    names = {
        "embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    }
    for layer in range(config.num_layers):
        names |= {f"blocks.{layer}.{ours}": f"transformer.h.{layer}.{theirs}" for ours, theirs in _GPT2_LAYER.items()}
    tensors = {}
    for name, parameter in model.named_parameters():
        stem, _, kind = name.rpartition(".")
        if stem in names:
            tensor = parameter.detach()
            stored_transposed = kind == "weight" and ".c_" in names[stem]
            tensors[f"{names[stem]}.{kind}"] = tensor.T.contiguous() if stored_transposed else tensor
    return settings, tensors
