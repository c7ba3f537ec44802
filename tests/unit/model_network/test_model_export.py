"""Exports: transformers loads them and computes the same, OFF as its own classes and ON with remote code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_factory import random_model, small_config
from safetensors.torch import load_file

from openbook_core.errors import ConflictError, InputError
from openbook_model.checkpoint import load, save
from openbook_model.config import RotaryScaling
from openbook_model.convert import convert_model
from openbook_model.convert.huggingface import RetrofitOptions, convert_huggingface
from openbook_model.export import export_model
from openbook_model.model import RetroModel

GOLDEN = Path(__file__).parents[2] / "golden"
BIASES = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
STRETCH = RotaryScaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_positions=32)
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"norm": "rmsnorm"}),
    "llama, biases, untied, wide heads": (
        "LlamaForCausalLM",
        {"norm": "rmsnorm", "tied_embeddings": False, "head_dim": 12, **BIASES},
    ),
    "llama 3.1": ("LlamaForCausalLM", {"norm": "rmsnorm", "rotary_base": 100.0, "rotary_scaling": STRETCH}),
    "qwen2": ("Qwen2ForCausalLM", {"norm": "rmsnorm", "qkv_bias": True}),
    "qwen2, wide heads": ("Qwen2ForCausalLM", {"norm": "rmsnorm", "qkv_bias": True, "head_dim": 12}),
    "qwen3": ("Qwen3ForCausalLM", {"norm": "rmsnorm", "qk_norm": True, "head_dim": 12}),
    "nvidia": (
        "StableLmForCausalLM",
        {"norm": "layernorm1p", "norm_bias": True, "rotary_fraction": 0.5, "tied_embeddings": False},
    ),
    "layernorm without bias": ("StableLmForCausalLM", {"norm": "layernorm", "qkv_bias": True}),
    "gpt2": (
        "GPT2LMHeadModel",
        {"positions": "learned", "norm_bias": True, "mlp": "gelu_tanh", "num_kv_heads": 4, **BIASES},
    ),
    "gpt2, exact, untied": (
        "GPT2LMHeadModel",
        {
            "positions": "learned",
            "norm_bias": True,
            "mlp": "gelu",
            "num_kv_heads": 4,
            "tied_embeddings": False,
            **BIASES,
        },
    ),
}
IDS = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(3))


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() <= 2e-5 * ours.abs().max()
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@torch.no_grad()
@pytest.mark.parametrize("variant", sorted(DECODERS))
def test_the_decoder_in_transformers(variant: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    name, settings = DECODERS[variant]
    model = random_model(small_config(**settings))
    save(model, tmp_path / "model")
    assert export_model("hf", tmp_path / "model", tmp_path / "hf") == name
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert type(theirs).__name__ == name
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same(model(IDS), theirs.eval()(IDS).logits)
    if name != "StableLmForCausalLM":  # and back
        options = RetrofitOptions(chunk_length=8, cross_attention_layers=())
        again, _ = convert_huggingface(tmp_path / "hf", options)
        for key, value in again.named_parameters():
            assert torch.equal(value, dict(model.named_parameters())[key]), key


@torch.no_grad()
def test_nvidias_decoder_in_transformers(tmp_path: Path) -> None:
    """The golden logits of NVIDIA's own code at gate 0, out of a class of transformers."""
    from transformers import AutoModelForCausalLM

    convert_model("megatron-core", GOLDEN / "legacy_gate0", tmp_path / "model")
    assert export_model("hf", tmp_path / "model", tmp_path / "hf") == "StableLmForCausalLM"
    expected = load_file(GOLDEN / "legacy_gate0" / "expected.safetensors")
    logits = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()(expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("norm", "dtype"), [("rmsnorm", torch.bfloat16), ("layernorm1p", torch.float32)])
def test_the_type_of_a_bfloat16_model(norm: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    save(random_model(small_config(norm=norm)).bfloat16(), tmp_path / "model")
    export_model("hf", tmp_path / "model", tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.dtype == dtype
    exact = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    assert_same(load(tmp_path / "model")(IDS), exact(IDS).logits)


@pytest.mark.parametrize("settings", [{"mlp": "gelu"}, {"norm": "rmsnorm", "output_bias": True}, {"qk_norm": True}])
def test_what_transformers_does_not_have(settings: dict[str, Any], tmp_path: Path) -> None:
    save(random_model(small_config(**settings)), tmp_path / "model")
    with pytest.raises(InputError, match="hf-retro"):
        export_model("hf", tmp_path / "model", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_target_that_exists(tmp_path: Path) -> None:
    save(random_model(small_config(norm="rmsnorm")), tmp_path / "model")
    with pytest.raises(ConflictError):
        export_model("hf-retro", tmp_path / "model", tmp_path / "model")


@pytest.fixture
def remote_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers copies the modeling file into a folder of its own."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def load_remote(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    theirs, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return theirs.eval()


@torch.no_grad()
@pytest.mark.usefixtures("remote_code")
@pytest.mark.parametrize("conditioned", [True, False])
def test_retro_with_remote_code(conditioned: bool, tmp_path: Path) -> None:
    model = random_model(small_config(conditioned=conditioned, tied_embeddings=conditioned, gate="learned"))
    save(model, tmp_path / "model")
    assert export_model("hf-retro", tmp_path / "model", tmp_path / "hf") == "OpenbookRetroForCausalLM"
    theirs = load_remote(tmp_path / "hf")
    neighbors = torch.randint(0, 50, (2, 5, 2, 16), generator=torch.Generator().manual_seed(4))
    lengths = torch.tensor([16, 7]).expand(2, 5, 2)
    assert torch.equal(theirs(IDS).logits, model(IDS))
    on = theirs(IDS, neighbor_ids=neighbors, neighbor_lengths=lengths, labels=IDS)
    assert torch.equal(on.logits, model(IDS, neighbors, lengths))
    assert not torch.equal(on.logits, model(IDS))
    loss = torch.nn.functional.cross_entropy(on.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(on.loss, loss)
    first = theirs(IDS, neighbor_ids=neighbors[:, :, :1], first_chunk=3)
    assert torch.equal(first.logits, model(IDS, neighbors[:, :, :1], first_chunk=3))
    assert_same_weights(load(tmp_path / "hf"), model)  # the folder is still one of ours
    theirs.save_pretrained(tmp_path / "again")
    assert torch.equal(load_remote(tmp_path / "again")(IDS).logits, model(IDS))


def assert_same_weights(one: RetroModel, other: RetroModel) -> None:
    for (name, value), twin in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(value, twin), name


@torch.no_grad()
@pytest.mark.usefixtures("remote_code")
def test_generation_with_remote_code(tmp_path: Path) -> None:
    model = random_model(small_config())
    save(model, tmp_path / "model")
    export_model("hf-retro", tmp_path / "model", tmp_path / "hf")
    theirs = load_remote(tmp_path / "hf")
    wanted = IDS[:, :10]
    for _ in range(8):
        wanted = torch.cat((wanted, model(wanted)[:, -1:].argmax(-1)), dim=1)
    written = theirs.generate(IDS[:, :10], max_new_tokens=8, do_sample=False)
    assert torch.equal(written, wanted)
    with pytest.raises(ValueError, match="without retrieval"):
        theirs.generate(IDS[:, :10], max_new_tokens=2, neighbor_ids=torch.zeros(2, 2, 2, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="padded"):
        theirs(IDS, attention_mask=torch.arange(40).expand(2, 40) > 0)
