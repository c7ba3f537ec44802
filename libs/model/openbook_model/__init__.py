"""The RETRO network, its cache, and conversion from and to other formats. Names load on first use (torch is heavy)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openbook_model.cache import DecodeCache as DecodeCache
    from openbook_model.checkpoint import load as load
    from openbook_model.checkpoint import save as save
    from openbook_model.config import EncoderConfig as EncoderConfig
    from openbook_model.config import RetroConfig as RetroConfig
    from openbook_model.crossing import Neighbors as Neighbors
    from openbook_model.hashing import weights_hash as weights_hash
    from openbook_model.initialisation import initialise as initialise
    from openbook_model.initialisation import start_copying as start_copying
    from openbook_model.model import RetroModel as RetroModel
    from openbook_model.model import cross_attention_state as cross_attention_state
    from openbook_model.model import next_token_loss as next_token_loss

_HOMES = {
    "DecodeCache": "cache",
    "load": "checkpoint",
    "save": "checkpoint",
    "EncoderConfig": "config",
    "RetroConfig": "config",
    "Neighbors": "crossing",
    "weights_hash": "hashing",
    "initialise": "initialisation",
    "start_copying": "initialisation",
    "RetroModel": "model",
    "cross_attention_state": "model",
    "next_token_loss": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
