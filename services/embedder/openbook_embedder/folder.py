"""What a model folder in the layout of sentence-transformers says about an encoder, beside its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError

# The fields of config.json that the network's result depends on.
_ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "max_position_embeddings",
    "type_vocab_size",
    "vocab_size",
)


@dataclass(frozen=True)
class EncoderFolder:
    """Geometry, length limit (special tokens included) and prompts ("query", "passage") of an encoder."""

    path: Path
    architecture: dict[str, Any]
    max_tokens: int
    prompts: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> EncoderFolder:
        """Raises InputError for a folder that is not an encoder's, and for pooling other than the mean."""
        if not path.is_dir():
            raise InputError(
                f"{path} is not a folder; an embedder is a folder with config.json, tokenizer.json and "
                "model.safetensors",
                field="model",
            )
        config = _read_json(path / "config.json")
        if not config:
            raise InputError(f"{path} holds no config.json, so it is not an encoder's folder", field="model")
        if "hidden_size" not in config or config.get("model_type") != "bert":
            raise InputError(
                f"{path} holds a model of type {config.get('model_type')!r}; encoders of type 'bert' are served",
                field="model",
            )
        pooling = _read_json(path / "1_Pooling" / "config.json")
        if pooling and not (pooling.get("pooling_mode_mean_tokens") or pooling.get("pooling_mode") == "mean"):
            raise InputError(f"{path} pools otherwise than by the mean ({pooling}); give another model", field="model")
        limit = _read_json(path / "sentence_bert_config.json").get("max_seq_length")
        positions = int(config["max_position_embeddings"])
        prompts = _read_json(path / "config_sentence_transformers.json").get("prompts") or {}
        return cls(
            path=path,
            architecture={key: config.get(key) for key in _ARCHITECTURE},
            max_tokens=min(int(limit), positions) if limit else positions,
            prompts={
                "query": prompts.get("query", ""),
                "passage": prompts.get("passage", prompts.get("document", "")),
            },
        )


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}", field="model") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold an object, not {type(data).__name__}", field="model")
    return data
