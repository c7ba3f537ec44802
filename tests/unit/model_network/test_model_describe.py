"""Sizes and what they cost: published parameter counts, torch's own counts of FLOPs and of what autograd keeps."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from model_factory import random_model, small_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from openbook_core.errors import ArgumentError, ConfigError
from openbook_model.accounting import forward_work, parameters_by_part, training_flops
from openbook_model.checkpoint import save
from openbook_model.config import EncoderConfig, RetroConfig, read_size, size_names
from openbook_model.describe import describe, find_config, render
from openbook_model.memory import SavedElements, training_memory
from openbook_model.model import RetroModel

ROOT = Path(__file__).parents[3]


def size(name: str, **more: Any) -> RetroConfig:
    return RetroConfig.parse({"size": name, **more})


def total(config: RetroConfig) -> int:
    return sum(parameters_by_part(config).values())


def test_every_shipped_file_is_a_size_and_loads() -> None:
    files = {path.stem for path in (ROOT / "libs/model/openbook_model/sizes").glob("*.yaml")}
    assert files == set(size_names())
    counts = [total(size(name)) for name in size_names()]
    assert counts == sorted(counts)


def test_tiny_is_that_of_the_training_example() -> None:
    example = yaml.safe_load((ROOT / "examples/train/tiny.yaml").read_text())
    assert RetroConfig.parse(example["model"]) == size("tiny")


# GPT and Retro, in millions, with embeddings: InstructRetro (arXiv 2310.07713), section 3 and table 7.
@pytest.mark.parametrize(
    ("name", "gpt", "retro", "unit"),
    [("800m", 823, 878, 1e6), ("2b", 2.25, 2.5, 1e9), ("8b", 8.5, 9.5, 1e9), ("48b", 43, 48, 1e9)],
)
def test_instructretro_has_the_published_number_of_parameters(name: str, gpt: float, retro: float, unit: float) -> None:
    """To the figures that are printed, but for 2.47 billion that are called 2.5."""
    config = size(name)
    assert total(size(name, cross_attention_layers=[])) / unit == pytest.approx(gpt, rel=0.005)
    assert total(config) / unit == pytest.approx(retro, rel=0.012)
    assert list(config.cross_attention_layers) == list(range(9, config.num_layers + 1, 3))
    assert (config.encoder.hidden_size, config.encoder.num_layers) == (config.hidden_size, 2)


def test_retro_7_5b_has_the_published_number_of_parameters() -> None:
    """7,532 and 6,982 million without embeddings (arXiv 2112.04426, table 1), an encoder of about 19 million, of which
    learned relative positions are a matrix for each attention that this network does not have."""
    config = size("7.5b")
    parts = parameters_by_part(config)
    width, reader, layers = config.hidden_size, config.encoder.hidden_size, config.num_layers
    relative = (layers + len(config.cross_attention_layers)) * width**2
    assert sum(parts.values()) - parts["embeddings"] + relative == pytest.approx(7532e6, rel=0.001)
    plain = size("7.5b", cross_attention_layers=[])
    assert total(plain) - parts["embeddings"] + layers * width**2 == pytest.approx(6982e6, rel=0.001)
    to_the_decoder = 2 * (reader**2 + width * reader) + width * reader  # cross attention and input projection
    assert parts["encoder"] - to_the_decoder == pytest.approx(19e6, rel=0.02)


def test_parts_add_up() -> None:
    model = random_model(small_config(conditioned=True, qk_norm=True, gate="learned", tied_embeddings=False))
    parts = parameters_by_part(model.config)
    assert sum(parts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert parts["output layer"] == parts["embeddings"] == 50 * 32
    assert model.encoder is not None
    assert parts["encoder"] == sum(parameter.numel() for parameter in model.encoder.parameters())
    assert parts["norms"] == 9 * 32 + 4 * 2 * 8
    assert parts["self attention"] == 4 * (32 * 64 + 32 * 32)


@pytest.mark.parametrize("name", ["125m", "350m"])
def test_a_narrow_encoder_keeps_the_flops_near_those_of_the_decoder(name: str) -> None:
    for tokens in (1024, 2048):
        figures = describe(size(name), tokens=tokens)
        assert 1.0 < figures["flops_per_token"]["over_the_decoder_alone"] <= 1.2


def test_settings_over_a_size() -> None:
    config = size("125m", num_layers=24, encoder={"num_layers": 3})
    assert (config.num_layers, config.hidden_size) == (24, 768)
    assert (config.encoder.num_layers, config.encoder.hidden_size) == (3, read_size("125m")["encoder"]["hidden_size"])
    with pytest.raises(ArgumentError, match="125m"):
        size("124m")
    with pytest.raises(ConfigError, match="hidden_size"):
        size("125m", hiden_size=3)


NARROW = EncoderConfig(hidden_size=24, num_heads=2)
MIXING = EncoderConfig(hidden_size=24, num_heads=2, convolution=4)
NVIDIA = EncoderConfig(hidden_size=32, num_heads=4, conditioned=True, positions="none", final_norm=False)
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"cross_attention_layers": ()},
    "narrow encoder": {"norm": "rmsnorm", "encoder": NARROW, "gate": "learned"},
    "nvidia": {"norm": "layernorm1p", "encoder": NVIDIA, "num_kv_heads": 4, "tied_embeddings": False},
    "gelu, wide heads": {"mlp": "gelu", "head_dim": 12, "encoder": MIXING, "qkv_bias": True, "mlp_bias": True},
    "first layer crosses": {"cross_attention_layers": (1, 2), "encoder": NVIDIA, "qk_norm": True},
}


def shaped(name: str, **more: Any) -> RetroConfig:
    base = {"vocab_size": 50, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2}
    base |= {"max_positions": 128, "chunk_length": 8, "cross_attention_layers": (2, 4)}
    return RetroConfig(**base | SHAPES[name] | more)


def counted(model: RetroModel, tokens: int, *, backward: bool = False) -> tuple[int, int]:
    """Torch's FLOPs of (linear layers, attention) over one sequence."""
    config = model.config
    chunks = -(-tokens // config.chunk_length)
    shape = (1, chunks, config.num_neighbors, config.neighbor_length)
    neighbors = torch.zeros(shape, dtype=torch.int64) if config.cross_attention_layers else None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(torch.zeros(1, tokens, dtype=torch.int64), neighbors)
        if backward:
            logits.sum().backward()
    flops = {str(name): number for name, number in counter.get_flop_counts()["Global"].items()}
    assert flops.keys() <= {"aten.mm", "aten.addmm", "aten.bmm"}
    scores = flops.get("aten.bmm", 0)
    return sum(flops.values()) - scores, scores


@pytest.mark.parametrize("tokens", [32, 45])
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_flops_are_those_that_torch_counts(shape: str, tokens: int) -> None:
    model = random_model(shaped(shape))
    work = forward_work(model.config, tokens)
    everything = work.decoder + work.cross + work.encoder + work.encoder_input
    assert counted(model, tokens) == (everything.linear, everything.scores)
    assert work.total == everything.total
    off = forward_work(model.config, tokens, neighbors=0)
    plain = forward_work(shaped(shape, cross_attention_layers=()), tokens)
    assert off.total == work.decoder.total == plain.total


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", ["narrow encoder", "nvidia", "first layer crosses"])
def test_training_flops_are_those_that_torch_counts(shape: str, frozen: bool) -> None:
    model = random_model(shaped(shape))
    for name, parameter in model.named_parameters():
        if frozen and not (name.startswith("encoder.") or ".cross" in name or ".gate" in name):
            parameter.requires_grad_(False)
    assert sum(counted(model, 45, backward=True)) == training_flops(model.config, 45, frozen_base=frozen)


def kept_elements(model: RetroModel, tokens: int) -> float:
    """What autograd keeps of one sequence, as it is stored, without the weights."""
    config, own = model.config, {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    shape_BLKR = (1, tokens // config.chunk_length, config.num_neighbors, config.neighbor_length)
    neighbors = torch.zeros(shape_BLKR, dtype=torch.int64) if config.cross_attention_layers else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(torch.zeros(1, tokens, dtype=torch.int64), neighbors)
    assert logits.requires_grad
    return sum(storage.nbytes() for storage in kept.values()) / 4


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_activations_are_those_that_autograd_keeps(shape: str) -> None:
    elements = kept_elements(random_model(shaped(shape)), 96)
    assert SavedElements.of(shaped(shape), 96).total == pytest.approx(elements, rel=0.08)


@pytest.mark.parametrize("shape", ["plain", "narrow encoder"])
def test_checkpointed_activations_are_those_that_autograd_keeps(shape: str) -> None:
    """Before the backward pass; in it, one block at a time is computed again."""
    model = random_model(shaped(shape))
    for block in [*model.blocks, *(model.encoder.blocks if model.encoder is not None else ())]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=True)
    saved = SavedElements.of(model.config, 96)
    expected = saved.inputs + saved.encoder_ends + saved.final_norm
    assert expected == pytest.approx(kept_elements(model, 96), rel=0.08)
    assert saved.checkpointed == expected + max(saved.block + saved.cross, saved.reader)
    assert saved.checkpointed < 0.6 * saved.total


def test_memory_is_shared_by_the_gpus() -> None:
    config = size("8b")
    one, many = training_memory(config, 4096), training_memory(config, 4096, gpus=64, sequences=2)
    parameters = total(config)
    assert one.states == 16 * parameters  # weights, gradients and two moments, four bytes each
    assert many.states == -(-16 * parameters // 64)
    assert many.activations == 2 * one.activations
    assert many.checkpointed < many.activations / 3
    assert many.logits == 2 * 4096 * 256000 * 10
    assert many.gathered < one.gathered
    assert many.total_checkpointed == many.states + many.gathered + many.checkpointed + many.logits


def test_description() -> None:
    figures = describe(size("800m"), gpus=8, gpu_tflops=312, mfu=0.5)
    work = forward_work(size("800m"), 4096)
    assert figures["flops_per_token"]["forward"] == work.total / 4096
    assert figures["flops_per_token"]["encoder_share"] == work.encoder.total / work.total
    assert figures["on_disk"]["training_checkpoint"] == 12 * figures["parameters"]["total"]
    per_second = figures["speed"]["tokens_per_second"]
    assert per_second * training_flops(size("800m"), 4096) / 4096 == pytest.approx(8 * 312e12 * 0.5)
    frozen = describe(size("800m"), frozen_base=True)
    assert frozen["parameters"]["trained"] == pytest.approx(54.3e6, rel=0.01)
    assert frozen["flops_per_token"]["training"] < figures["flops_per_token"]["training"]
    text = render(figures)
    assert "877,518,848" in text and "312 TFLOP/s" in text


def test_where_a_configuration_comes_from(tmp_path: Path) -> None:
    config = small_config()
    save(random_model(config), tmp_path / "model")
    assert find_config(str(tmp_path / "model")) == config
    assert find_config("125m") == size("125m")
    assert find_config(str(ROOT / "examples/train/tiny.yaml")) == size("tiny")
    (tmp_path / "own.yaml").write_text(json.dumps({"size": "tiny", "num_layers": 6}))
    assert find_config(str(tmp_path / "own.yaml")).num_layers == 6
    with pytest.raises(ArgumentError, match="no size"):
        find_config("9b")
    (tmp_path / "own.yaml").write_text("size: tiny\nnum_layer: 6")
    with pytest.raises(ConfigError, match="num_layers"):
        find_config(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("given", "field"),
    [({"gpus": 0}, "gpus"), ({"tokens": 4097}, "tokens"), ({"mfu": 1.5}, "mfu"), ({"sequences": -1}, "sequences")],
)
def test_impossible_questions(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        describe(size("800m"), **given)
    assert caught.value.field == field
