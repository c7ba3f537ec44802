"""Conversions: OFF logits equal transformers' own, every parameter accounted for, and sources that are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openbook_core.errors import ArgumentError, CorruptError, InputError, NotFoundError, OpenbookError
from openbook_core.tokenizer import Tokenizer
from openbook_core.weights import DEFAULT_MODEL, resolve_model
from openbook_model.checkpoint import load
from openbook_model.convert import RetrofitOptions, convert_model
from openbook_model.convert.huggingface import convert_huggingface
from openbook_model.model import RetroModel, cross_attention_state

GOLDEN = Path(__file__).parents[2] / "golden"
LLAMA = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 64}
SMALL = RetrofitOptions(chunk_length=8, neighbor_length=16, encoder_width=16, encoder_heads=2)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama tied, grouped": ("Llama", LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 2}),
    "llama untied": ("Llama", LLAMA | {"tie_word_embeddings": False}),
    "llama biases": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "llama wide heads": (
        "Llama",
        LLAMA | {"head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    ),
    "llama 3.1": (
        "Llama",
        LLAMA
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen2": ("Qwen2", LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2 untied, unused window": ("Qwen2", LLAMA | {"num_key_value_heads": 4, "sliding_window": 16}),
    "qwen3": ("Qwen3", LLAMA | {"num_key_value_heads": 2, "head_dim": 12, "tie_word_embeddings": True}),
    "qwen3 biases": (
        "Qwen3",
        LLAMA | {"num_key_value_heads": 1, "attention_bias": True, "head_dim": 8, "tie_word_embeddings": False},
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2 untied": ("GPT2", GPT2 | {"tie_word_embeddings": False}),
    "gpt2 exact gelu": ("GPT2", GPT2 | {"activation_function": "gelu", "n_inner": 40}),
}


def make_source(family: str, settings: dict[str, Any], folder: Path, seed: int = 0) -> Any:
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**settings, bos_token_id=0, eos_token_id=1)
    kind = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    original = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    original.save_pretrained(folder)
    return original


def assert_equals(model: RetroModel, original: Any, ids: Tensor) -> None:
    with torch.no_grad():
        ours, theirs = model(ids), original(ids).logits
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_off_equals_transformers(variant: str, seed: int, tmp_path: Path) -> None:
    original = make_source(*VARIANTS[variant], tmp_path, seed)
    model, report = convert_huggingface(tmp_path, SMALL)
    for shape in ((1, 1), (3, 60)):
        assert_equals(model, original, torch.randint(0, 60, shape, generator=torch.Generator().manual_seed(seed)))
    ids = torch.randint(0, 60, (2, 20), generator=torch.Generator().manual_seed(1))
    assert_equals(model, original, ids)
    assert cross_attention_state(model) == "off (gate 0)"
    with torch.no_grad():
        assert torch.equal(model(ids, torch.zeros(2, 3, 2, 16, dtype=torch.int64)), model(ids))
    names = {name for name, _ in model.named_parameters()}
    assert set(report.loaded) | set(report.new) == names
    assert set(report.loaded).isdisjoint(report.new)
    assert "blocks.5.gate" in report.new
    assert all("cross" in name or "gate" in name or name.startswith("encoder.") for name in report.new)
    assert "blocks.5.gate" in report.render()


def test_without_cross_attention(tmp_path: Path) -> None:
    original = make_source(*VARIANTS["qwen3"], tmp_path)
    model, report = convert_huggingface(tmp_path, SMALL.model_copy(update={"cross_attention_layers": ()}))
    assert report.new == ()
    assert cross_attention_state(model) == "absent"
    assert_equals(model, original, torch.arange(30)[None])


def test_the_sources_own_dtype(tmp_path: Path) -> None:
    from transformers import Qwen3ForCausalLM

    make_source(*VARIANTS["qwen3"], tmp_path / "source").bfloat16().save_pretrained(tmp_path / "source")
    convert_model("hf", tmp_path / "source", tmp_path / "model", SMALL, dtype=None)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    original = Qwen3ForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)
    assert_equals(load(tmp_path / "model"), original, torch.arange(30)[None])


def test_cached_decoding_with_head_norms_and_stretched_positions(tmp_path: Path) -> None:
    """What is new in the attention goes through the cache too."""
    for variant in ("qwen3", "llama 3.1"):
        original = make_source(*VARIANTS[variant], tmp_path / variant)
        model, _ = convert_huggingface(tmp_path / variant, SMALL)
        ids = torch.randint(0, 60, (40,), generator=torch.Generator().manual_seed(2))
        cache = model.new_cache(1, 64)
        model.prefill(cache, [0], [ids[:20]])
        for position in range(20, 40):
            last = model.step(cache, [0], ids[position : position + 1])
        with torch.no_grad():
            theirs = original(ids[None]).logits[:, -1]
        assert (last - theirs).abs().max() <= 2e-5 * theirs.abs().max()


def test_directory_with_options_and_dtype(tmp_path: Path) -> None:
    original = make_source(*VARIANTS["llama tied, grouped"], tmp_path / "source")
    options = SMALL.model_copy(update={"cross_attention_layers": (2,), "conditioned": True, "num_neighbors": 3})
    convert_model("hf", tmp_path / "source", tmp_path / "model", options)
    model = load(tmp_path / "model")
    assert model.config.cross_attention_layers == (2,)
    assert model.config.encoder.conditioned
    assert_equals(model, original, torch.arange(30)[None])
    convert_model("hf", tmp_path / "source", tmp_path / "low", SMALL, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "low" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def _edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _edit_weights(folder: Path, edit: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: _edit_config(folder, model_type="bert"), "bert"),
        (lambda folder: _edit_config(folder, hidden_act="gelu"), "hidden_act"),
        (
            lambda folder: _edit_config(
                folder, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
            ),
            "rope_type",
        ),
        (lambda folder: _edit_config(folder, num_hidden_layers=7), "missing"),
        (lambda folder: _edit_config(folder, num_hidden_layers=5), "no place"),
        (lambda folder: _edit_config(folder, num_attention_heads=3), "num_heads|another shape|cannot be read"),
        (lambda folder: _edit_config(folder, hidden_size=64), "another shape|cannot be read"),
        (lambda folder: _edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
        (lambda folder: _edit_config(folder, model_type="qwen3_moe"), "qwen3_moe"),
        (lambda folder: _edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight")), "missing"),
        (lambda folder: _edit_weights(folder, lambda t: t["model.norm.weight"].fill_(torch.nan)), "NaN"),
        (lambda folder: (folder / "config.json").write_text("[]"), "JSON object"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{"), "truncated"),
    ],
)
def test_sources_that_do_not_fit_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    make_source(*VARIANTS["llama untied"], tmp_path / "source")
    spoil(tmp_path / "source")
    with pytest.raises(OpenbookError, match=message) as caught:
        convert_model("hf", tmp_path / "source", tmp_path / "model", SMALL)
    assert caught.value.field
    assert not (tmp_path / "model").exists()


class Evil:
    """Unpickled, it makes the folder that it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_a_malicious_bin_file_is_refused_and_not_run(tmp_path: Path) -> None:
    make_source(*VARIANTS["llama untied"], tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    (tmp_path / "source" / "model.safetensors").unlink()
    torch.save({**tensors, "more": Evil(tmp_path / "ran")}, tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds a pickle"):
        convert_model("hf", tmp_path / "source", tmp_path / "model", SMALL)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "source" / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists(), "the file does what it should: a trusting reader runs it"
    torch.save(tensors, tmp_path / "source" / "pytorch_model.bin")
    convert_model("hf", tmp_path / "source", tmp_path / "model", SMALL)


def test_unexpected_tensors_can_be_left_out_and_are_listed(tmp_path: Path) -> None:
    original = make_source(*VARIANTS["llama untied"], tmp_path / "source")
    _edit_weights(tmp_path / "source", lambda tensors: tensors.update({"model.vision.weight": torch.ones(2)}))
    with pytest.raises(InputError, match=r"model\.vision\.weight"):
        convert_model("hf", tmp_path / "source", tmp_path / "model", SMALL)
    report = convert_model("hf", tmp_path / "source", tmp_path / "model", SMALL, allow_unexpected=True)
    assert report.unexpected == ("model.vision.weight",)
    assert_equals(load(tmp_path / "model"), original, torch.arange(30)[None])


def test_wrong_kind_of_source(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="a folder 'hf'"):
        convert_model("gguf", tmp_path, tmp_path / "model")
    with pytest.raises(NotFoundError):
        convert_model("hf", tmp_path / "none", tmp_path / "model")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(InputError):
        convert_model("gguf", tmp_path / "bad.gguf", tmp_path / "model")


def test_megatron_folder_becomes_a_model_directory(tmp_path: Path) -> None:
    report = convert_model("megatron-core", GOLDEN / "core_nvidia", tmp_path / "model")
    assert report.new == ()
    model, expected = load(tmp_path / "model"), load_file(GOLDEN / "core_nvidia" / "expected.safetensors")
    with torch.no_grad():
        logits = model(expected["input_ids"], expected["neighbor_ids"].view(2, 4, 2, 16))
    torch.testing.assert_close(logits, expected["logits"], atol=2e-5, rtol=0)


def test_megatron_tensors_are_accounted_for(tmp_path: Path) -> None:
    settings = json.loads((GOLDEN / "core_nvidia" / "config.json").read_text())
    tensors = load_file(GOLDEN / "core_nvidia" / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file(tensors | {"decoder.layers.0.mlp.extra.weight": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"extra\.weight"):
        convert_model("megatron-core", tmp_path, tmp_path / "model")
    del tensors["decoder.layers.3.mlp.linear_fc1.weight"]
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"blocks\.3\.mlp\.up\.weight"):
        convert_model("megatron-core", tmp_path, tmp_path / "model")
    del settings["chunk_length"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="chunk_length"):
        convert_model("megatron-core", tmp_path, tmp_path / "model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 3, "head_dim": 8}, "shape"),
        ({"num_attention_heads": 8}, "shape"),
        ({"hidden_size": 64}, "shape"),
        ({"activation": "relu"}, "relu"),
        ({"cross_attention_layers_1based": [6, 9, 15]}, "beyond the last"),
        ({"rotary_percent": 0.4}, "rotary_fraction"),
        ({"num_layers": 11}, "no place|beyond"),
    ],
)
def test_megatron_settings_that_do_not_fit(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = json.loads((GOLDEN / "core_nvidia" / "config.json").read_text()) | settings
    (tmp_path / "config.json").write_text(json.dumps(given))
    (tmp_path / "weights.safetensors").symlink_to((GOLDEN / "core_nvidia" / "weights.safetensors").resolve())
    with pytest.raises(OpenbookError, match=message):
        convert_model("megatron-core", tmp_path, tmp_path / "model")


def test_truncated_megatron_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((GOLDEN / "core_nvidia" / "config.json").read_text())
    whole = (GOLDEN / "core_nvidia" / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptError, match="not a whole"):
        convert_model("megatron-core", tmp_path, tmp_path / "model")


def test_smollm2_from_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    read, originals = AutoModelForCausalLM.from_pretrained, []

    def read_and_keep(*args: Any, **settings: Any) -> Any:
        model, info = read(*args, **settings)
        originals.append(model.eval())
        return model, info

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read_and_keep)
    path = resolve_model(DEFAULT_MODEL)
    report = convert_model("gguf", path, tmp_path / "model")
    model = load(tmp_path / "model")
    assert report.ignored == ()
    assert cross_attention_state(model) == "off (gate 0)"
    tokenizer = Tokenizer.load(tmp_path / "model")
    assert tokenizer.fingerprint == Tokenizer.load(path).fingerprint
    assert tokenizer.chat_template
    ids = tokenizer.encode("The head of government of Canada is the prime minister. " * 8)
    assert_equals(model, originals[0], torch.from_numpy(ids.astype("int64"))[None])
