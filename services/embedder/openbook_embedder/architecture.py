"""Which networks are served, and what config.json says about one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError
from openbook_embedder.files import read_object

_COMMON = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_BERT = (*_COMMON, "hidden_act", "layer_norm_eps", "max_position_embeddings", "type_vocab_size", "vocab_size")

# Model type -> the fields of its configuration that the network's result depends on.
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "bert": _BERT,
    "roberta": (*_BERT, "pad_token_id"),
    "xlm-roberta": (*_BERT, "pad_token_id"),
    "mpnet": (
        *_COMMON,
        "hidden_act",
        "layer_norm_eps",
        "max_position_embeddings",
        "relative_attention_num_buckets",
        "vocab_size",
    ),
    "distilbert": ("dim", "n_layers", "n_heads", "hidden_dim", "activation", "max_position_embeddings", "vocab_size"),
    "modernbert": (
        *_COMMON,
        "hidden_activation",
        "norm_eps",
        "norm_bias",
        "attention_bias",
        "mlp_bias",
        "layer_types",
        "local_attention",
        "rope_parameters",
        "max_position_embeddings",
        "vocab_size",
    ),
}


@dataclass(frozen=True)
class Architecture:
    """`record` belongs to the fingerprint; `positions` is the longest input in tokens, special ones included."""

    record: dict[str, Any]
    dimension: int
    vocab_size: int
    positions: int
    pad_id: int

    @classmethod
    def read(cls, folder: Path) -> Architecture:
        """From config.json with the defaults of its model type; InputError for a network that is not served."""
        given = read_object(folder / "config.json")
        if not given:
            raise InputError(f"{folder} holds no config.json, so it is not an encoder's folder", field="model")
        _refuse_unserved(folder, given)
        config = _resolved(folder)
        model_type = given["model_type"]
        pad_id = config.pad_token_id or 0
        return cls(
            record={"model_type": model_type, **{name: getattr(config, name) for name in ARCHITECTURES[model_type]}},
            dimension=config.hidden_size,
            vocab_size=config.vocab_size,
            positions=config.max_position_embeddings - _reserved_positions(model_type, pad_id),
            pad_id=pad_id,
        )


def _refuse_unserved(folder: Path, given: dict[str, Any]) -> None:
    model_type = given.get("model_type")
    if model_type not in ARCHITECTURES:
        raise InputError(
            f"{folder} holds a model of type {model_type!r}; encoders of these types are served: "
            f"{', '.join(sorted(ARCHITECTURES))}",
            field="model",
        )
    if "AutoModel" in (given.get("auto_map") or {}):
        raise InputError(
            f"{folder} needs code of its own ({given['auto_map']['AutoModel']}), which is never run; give a model "
            f"that transformers' own {model_type!r} reads",
            field="model",
        )
    if given.get("is_decoder"):
        raise InputError(f"{folder} is a decoder (is_decoder is true), not an encoder", field="model")
    if given.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(
            f"{folder} has positions of type {given['position_embedding_type']!r}; for {model_type!r} absolute ones "
            "are served",
            field="model",
        )


def _resolved(folder: Path) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise InputError(f"{folder / 'config.json'} does not load: {error}", field="model") from error


def _reserved_positions(model_type: str, pad_id: int) -> int:
    """Rows of the position table before the first token's: RoBERTa counts from the padding id on, MPNet from 1."""
    if model_type in ("roberta", "xlm-roberta"):
        return pad_id + 1
    return 2 if model_type == "mpnet" else 0
