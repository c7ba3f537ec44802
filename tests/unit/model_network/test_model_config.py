"""The configuration: defaults, refusals that name the field, and what initialisation promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from model_factory import small_config

from openbook_core.errors import ConfigError
from openbook_model.config import EncoderConfig, RetroConfig, default_cross_attention_layers
from openbook_model.initialisation import initialise
from openbook_model.model import RetroModel

BASE: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_layers": 12, "num_heads": 4}
ENCODER = {"hidden_size": 32, "num_heads": 4}


def test_defaults_follow_the_other_settings() -> None:
    config = RetroConfig.parse(BASE)
    assert (config.num_kv_heads, config.head_dim, config.ffn_hidden_size) == (4, 8, 128)
    assert (config.neighbor_length, config.cross_attention_layers) == (128, (6, 9, 12))
    assert (config.encoder.hidden_size, config.encoder.ffn_hidden_size) == (32, 128)
    assert RetroConfig.parse(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("layers", "expected"), [(12, (6, 9, 12)), (15, (6, 9, 12, 15)), (24, (9, 12, 15, 18, 21, 24))]
)
def test_default_cross_attention_layers(layers: int, expected: tuple[int, ...]) -> None:
    assert default_cross_attention_layers(layers) == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": 30}, "hidden_size"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"head_dim": 8, "rotary_fraction": 0.4}, "rotary_fraction"),
        ({"chunk_length": 64, "max_positions": 32}, "chunk_length"),
        ({"cross_attention_layers": (6, 13)}, "cross_attention_layers"),
        ({"cross_attention_layers": (9, 6)}, "cross_attention_layers"),
        ({"norm": "batchnorm"}, "norm"),
        ({"gate": "zero"}, "gate"),
        ({"gate": math.nan}, "gate"),
        ({"rotary_base": math.inf}, "rotary_base"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"hiden_size": 32}, "hidden_size"),
        ({"encoder": {**ENCODER, "positions": "shared"}}, "encoder.positions"),
        ({"encoder": {**ENCODER, "conditioned": True, "cross_attention_layers": ()}}, "cross_attention_layers"),
        ({"encoder": {**ENCODER, "conditioned": True, "cross_attention_layers": (3,)}}, "cross_attention_layers"),
        ({"encoder": {**ENCODER, "cross_attention_layers": (1,)}}, "cross_attention_layers"),
        ({"encoder": {"hidden_size": 30, "num_heads": 4}}, "hidden_size"),
        ({"encoder": {"hidden_size": 12, "num_heads": 4}}, "encoder.head_dim"),
        (
            {"positions": "learned", "encoder": {"hidden_size": 16, "num_heads": 4, "positions": "shared"}},
            "encoder.hidden_size",
        ),
    ],
)
def test_impossible_combinations_name_the_field(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RetroConfig.parse(BASE | change)


def test_a_wrong_setting_is_the_only_one_that_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        RetroConfig.parse({"size": "tiny", "rotary_base": -1.0})
    assert caught.value.message == "configuration: rotary_base: Input should be greater than 0 (given -1.0)"


def test_initial_weights_have_the_stated_spread() -> None:
    config = small_config(hidden_size=128, num_heads=4, gate="learned", norm="layernorm1p", norm_bias=True)
    model = RetroModel.allocate(config)
    initialise(model, seed=3)
    spreads = {
        "embedding.weight": 0.02,
        "blocks.0.attention.qkv.weight": 1 / math.sqrt(128),
        "blocks.0.attention.output.weight": 1 / math.sqrt(128) / math.sqrt(8),
        "blocks.1.mlp.down.weight": 1 / math.sqrt(512) / math.sqrt(8),
        "blocks.1.cross.output.weight": 1 / math.sqrt(128) / math.sqrt(8),
        "blocks.1.cross.key_value.weight": 1 / math.sqrt(24),
        "encoder.blocks.0.mlp.down.weight": 1 / math.sqrt(96) / math.sqrt(4),
    }
    parameters = dict(model.named_parameters())
    for name, expected in spreads.items():
        assert parameters[name].std().item() == pytest.approx(expected, rel=0.06), name
    assert not parameters["blocks.1.gate"].any()
    assert not parameters["final_norm.weight"].any()
    assert not parameters["final_norm.bias"].any()


def test_a_decoder_starts_the_same_with_and_without_retro_parts() -> None:
    retro, plain = (RetroModel.allocate(small_config(cross_attention_layers=layers)) for layers in ((2, 4), ()))
    initialise(retro, seed=5)
    initialise(plain, seed=5)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(retro(ids), plain(ids))
    initialise(plain, seed=6)
    with torch.no_grad():
        assert not torch.equal(retro(ids), plain(ids))


def test_meta_device_builds_without_storage() -> None:
    with torch.device("meta"):
        model = RetroModel(RetroConfig(vocab_size=50_000, hidden_size=4096, num_layers=48, num_heads=32))
    assert sum(parameter.numel() for parameter in model.parameters()) > 8e9
    assert all(parameter.is_meta for parameter in model.parameters())
    assert EncoderConfig(hidden_size=64, num_heads=2).head_dim == 32
