"""NVIDIA's released layout: golden logits through any tensor-parallel cut, and files that are refused."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from legacy_writer import ARGS, load_rank, rank_file, save_rank, write_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from openbook_core.errors import ArgumentError, InputError, OpenbookError
from openbook_model.checkpoint import load
from openbook_model.config import RetroConfig
from openbook_model.convert import RetrofitOptions, convert_model
from openbook_model.convert.legacy import _settings, convert_legacy
from openbook_model.convert.megatron import megatron_config
from openbook_model.model import cross_attention_state

GOLDEN = Path(__file__).parents[2] / "golden"
EIGHT = RetrofitOptions(chunk_length=8)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(GOLDEN / "legacy_nvidia" / "weights.safetensors")


def assert_golden(model: Any, name: str = "legacy_nvidia", tolerance: float = 2e-5) -> None:
    expected = load_file(GOLDEN / name / "expected.safetensors")
    for neighbors, logits in (("neighbor_ids", "logits"), ("other_neighbor_ids", "other_logits")):
        with torch.no_grad():
            ours = model(expected["input_ids"], expected[neighbors].view(2, 4, 2, 16))
        torch.testing.assert_close(ours, expected[logits], atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", ["legacy_nvidia", "legacy_nvidia_ragged", "legacy_gate0"])
def test_golden_logits_for_any_cut(name: str, size: int, tmp_path: Path) -> None:
    settings = json.loads((GOLDEN / name / "config.json").read_text())
    tensors = load_file(GOLDEN / name / settings["weights_file"])
    gate = settings["retro_attention_gate"]
    write_checkpoint(tmp_path / "released", tensors, size, {"retro_attention_gate": gate})
    report = convert_model("megatron-legacy", tmp_path / "released", tmp_path / "model", EIGHT)
    assert len(report.loaded) == len(tensors)
    assert report.new == report.unexpected == report.notes == ()
    assert all(name.endswith("_extra_state") for name in report.ignored) and report.ignored
    assert_golden(load(tmp_path / "model"), name)


def test_eight_ranks_of_gelu_with_biases(tmp_path: Path) -> None:
    """An architecture of which each of eight ranks has one head, without a gated MLP; the whole file is the oracle."""
    args = {"num_attention_heads": 8, "kv_channels": 4, "swiglu": False, "add_bias_linear": True}
    args |= {"apply_layernorm_1p": False, "position_embedding_type": "learned_absolute"}
    args |= {"untie_embeddings_and_output_weights": False, "num_layers": 6, "bias_gelu_fusion": True}
    tensors = gelu_tensors()
    whole, _ = convert_legacy(write_checkpoint(tmp_path / "tp1", tensors, 1, args), EIGHT)
    cut, report = convert_legacy(write_checkpoint(tmp_path / "tp8", tensors, 8, args), EIGHT)
    assert cut.config == whole.config
    assert cut.config.mlp == "gelu_tanh"
    assert len(report.loaded) == len(tensors)
    parameters = dict(cut.named_parameters())
    for (name, ours), theirs in zip(parameters.items(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(
        parameters["blocks.0.mlp.up.bias"], tensors["language_model.encoder.layers.0.mlp.dense_h_to_4h.bias"]
    )


def test_rmsnorm(tmp_path: Path) -> None:
    args = {"swiglu": False, "add_bias_linear": True, "apply_layernorm_1p": False, "normalization": "RMSNorm"}
    args |= {"position_embedding_type": "learned_absolute", "untie_embeddings_and_output_weights": False}
    tensors = {name: value for name, value in gelu_tensors().items() if not name.endswith("norm.bias")}
    model, report = convert_legacy(write_checkpoint(tmp_path / "rms", tensors, 2, {**args, "num_layers": 6}), EIGHT)
    assert (model.config.norm, model.config.mlp) == ("rmsnorm", "gelu")
    assert len(report.loaded) == len(tensors)


def gelu_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.word_embeddings.weight": (96, 32),
        "embedding.position_embeddings.weight": (64, 32),
        "encoder.final_norm.weight": (32,),
        "encoder.final_norm.bias": (32,),
    }

    def layer(prefix: str, *, cross: bool) -> None:
        parts = {"self_attention.query_key_value": (96, 32), "self_attention.dense": (32, 32)}
        parts |= {"mlp.dense_h_to_4h": (128, 32), "mlp.dense_4h_to_h": (32, 128)}
        parts |= {"input_norm": (32,), "post_attention_norm": (32,)}  # type: ignore[dict-item]
        if cross:
            parts |= {"inter_attention.query": (32, 32), "inter_attention.key_value": (64, 32)}
            parts |= {"inter_attention.dense": (32, 32), "post_inter_attention_norm": (32,)}  # type: ignore[dict-item]
        for name, shape in parts.items():
            shapes[f"{prefix}.{name}.weight"], shapes[f"{prefix}.{name}.bias"] = shape, shape[:1]

    for number in range(6):
        layer(f"encoder.layers.{number}", cross=number == 5)
    layer("encoder.layers.5.retriever.layers.0", cross=True)
    layer("encoder.layers.5.retriever.layers.1", cross=False)
    return {
        f"language_model.{name}": torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        for name, shape in shapes.items()
    }


def test_old_norm_names_optimizer_and_bfloat16(weights: dict[str, Tensor], tmp_path: Path) -> None:
    old = {re.sub(r"norm\.(weight|bias)$", r"layernorm.\1", name): value for name, value in weights.items()}
    assert "language_model.encoder.final_layernorm.weight" in old
    random_state = {"rng_state": [{"np_rng_state": np.random.RandomState(0).get_state(), "numbers": np.arange(3)}]}
    random_state["layer"] = io.BytesIO(b"a state of Transformer Engine")  # type: ignore[assignment]
    low = {name: value.bfloat16() for name, value in old.items()}
    write_checkpoint(tmp_path / "low", low, 2, **random_state, optimizer={"state": {0: torch.zeros(3)}})
    report = convert_model("megatron-legacy", tmp_path / "low", tmp_path / "model", EIGHT, dtype=None)
    assert len(report.loaded) == len(weights)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    exact, _ = convert_legacy(write_checkpoint(tmp_path / "exact", old, 2), EIGHT)
    assert_golden(exact)
    rounded, parameters = load(tmp_path / "model"), dict(exact.named_parameters())
    for name, value in rounded.named_parameters():
        assert torch.equal(value, parameters[name].bfloat16().float()), name


def test_the_chunk_length_is_given_and_the_rest_is_not(weights: dict[str, Tensor], tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "released", weights, 1)
    model, _ = convert_legacy(source)
    assert (model.config.chunk_length, model.config.neighbor_length) == (64, 128)
    with pytest.raises(ArgumentError, match="encoder_width"):
        convert_legacy(source, RetrofitOptions(encoder_width=16))


def test_a_gpt_without_retro_is_retrofitted(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Gate 0 of the golden model is a plain GPT: there the norm before the MLP has another name."""
    gpt = {}
    for name, value in weights.items():
        if "post_inter_attention" in name and "retriever" not in name:
            gpt[name.replace("post_inter_attention", "post_attention")] = value
        elif "retriever" not in name and "inter_attention" not in name:
            gpt.setdefault(name, value)
    source = write_checkpoint(tmp_path / "gpt", gpt, 2, {"retro_add_retriever": False})
    options = RetrofitOptions(chunk_length=8, encoder_width=16, encoder_heads=2)
    model, report = convert_legacy(source, options)
    assert cross_attention_state(model) == "off (gate 0)"
    assert "blocks.5.gate" in report.new
    assert_golden(model, "legacy_gate0")


def test_nvidias_843m_is_the_shipped_size() -> None:
    """Its options (Megatron-LM, tools/retro) give the configuration that `size: 800m` is."""
    args = ARGS | {"num_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "kv_channels": 64}
    args |= {"ffn_hidden_size": 2688, "padded_vocab_size": 256000, "max_position_embeddings": 4096}
    names = [f"{LAYERS}.{layer}.inter_attention.query.weight" for layer in range(8, 24, 3)]
    names.append(f"{LAYERS}.8.retriever.layers.0.inter_attention.query.weight")
    assert megatron_config(_settings(args, dict.fromkeys(names), 64)) == RetroConfig.parse({"size": "800m"})


def test_where_the_ranks_lie(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """An iteration of a training run, or the folder of the ranks itself."""
    source = write_checkpoint(tmp_path / "released", weights, 2)
    (source / "release").rename(source / "iter_0000012")
    (source / "latest_checkpointed_iteration.txt").write_text("12\n")
    assert_golden(convert_legacy(source, EIGHT)[0])
    assert_golden(convert_legacy(source / "iter_0000012", EIGHT)[0])


def test_copies_that_drifted_are_noted(weights: dict[str, Tensor], tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "released", weights, 2)
    record = load_rank(source, 1)
    norm = record["model"]["language_model"]["encoder"]["layers.3.input_norm.weight"]
    norm.add_(1e-4)
    save_rank(source, 1, record)
    model, report = convert_legacy(source, EIGHT)
    assert len(report.notes) == 1 and "layers.3.input_norm.weight" in report.notes[0]
    assert torch.equal(
        dict(model.named_parameters())["blocks.3.attention_norm.weight"], weights[f"{LAYERS}.3.input_norm.weight"]
    )


def test_unexpected_tensors_are_an_error_unless_allowed(weights: dict[str, Tensor], tmp_path: Path) -> None:
    more = {**weights, f"{LAYERS}.2.mlp.router.weight": torch.ones(4, 4)}
    source = write_checkpoint(tmp_path / "released", more, 2)
    with pytest.raises(InputError, match=r"router.*--allow-unexpected"):
        convert_legacy(source, EIGHT)
    model, report = convert_legacy(source, EIGHT, allow_unexpected=True)
    assert report.unexpected == (f"{LAYERS}.2.mlp.router.weight",)
    assert "router" in report.render()
    assert_golden(model)


LAYERS = "language_model.encoder.layers"
_ran: list[str] = []


def run_me(text: str) -> None:
    _ran.append(text)


class Evil:
    def __reduce__(self) -> Any:
        return run_me, ("the file's code ran",)


class EvilBuiltin:
    def __reduce__(self) -> Any:
        return eval, ("1 + 1",)


@pytest.mark.parametrize(("evil", "message"), [(Evil(), "run_me"), (EvilBuiltin(), "eval")])
def test_a_malicious_file_is_refused_and_not_run(
    evil: Any, message: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "released", weights, 1, extra=evil)
    with pytest.raises(InputError, match=message):
        convert_legacy(source, EIGHT)
    assert _ran == []
    load_rank(source, 0)  # the file does what it should: a trusting reader runs it
    assert _ran or message == "eval"
    _ran.clear()


def edit(rank: int, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        record = load_rank(folder, rank)
        change(record)
        save_rank(folder, rank, record)

    return spoil


def set_arg(name: str, value: Any, ranks: tuple[int, ...] = (0, 1)) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for rank in ranks:
            edit(rank, lambda record: setattr(record["args"], name, value))(folder)

    return spoil


def both(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for rank in (0, 1):
            edit(rank, change)(folder)

    return spoil


def remove(folder: Path, rank: int) -> None:
    rank_file(folder, rank).unlink()
    rank_file(folder, rank).parent.rmdir()


def truncate(folder: Path) -> None:
    path = rank_file(folder, 1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def in_encoder(record: dict[str, Any]) -> dict[str, Any]:
    return record["model"]["language_model"]["encoder"]  # type: ignore[no-any-return]


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "mp_rank_01.*truncated"),
    "not torch's": (lambda folder: rank_file(folder, 0).write_bytes(b"cos\nsystem\n(S'true'\ntR."), "mp_rank_00"),
    "another object": (lambda folder: torch.save([1, 2], rank_file(folder, 0)), "no dictionary"),
    "another program's": (lambda folder: torch.save({"state": 1}, rank_file(folder, 0)), "no Megatron model"),
    "missing rank": (lambda folder: rank_file(folder, 0).unlink(), "no file"),
    "missing first folder": (
        lambda folder: (rank_file(folder, 0).unlink(), rank_file(folder, 0).parent.rmdir()),
        "lacks mp_rank_00",
    ),
    "missing last folder": (
        lambda folder: remove(folder, 1),
        r"1 ranks of a checkpoint of 2; missing: mp_rank_01",
    ),
    "pipeline": (
        lambda folder: rank_file(folder, 1).parent.rename(folder / "release" / "mp_rank_00_001"),
        "pipeline parallelism",
    ),
    "pipeline by its args": (set_arg("pipeline_model_parallel_size", 2), "pipeline_model_parallel_size"),
    "tracker": (lambda folder: (folder / "latest_checkpointed_iteration.txt").write_text("7"), "iter_0000007"),
    "tracker of junk": (lambda folder: (folder / "latest_checkpointed_iteration.txt").write_text("../x"), "release"),
    "iterations": (edit(1, lambda record: record.update(iteration=5)), "different iterations"),
    "ranks of two models": (
        edit(1, lambda record: in_encoder(record)["layers.3.input_norm.weight"].add_(1)),
        "not of one checkpoint",
    ),
    "ranks of two shapes": (set_arg("ffn_hidden_size", 64, (1,)), "ffn_hidden_size is 128 on rank 0 and 64 on rank 1"),
    "uneven parts": (
        edit(1, lambda record: in_encoder(record).update({"layers.3.mlp.dense_4h_to_h.weight": torch.ones(32, 8)})),
        "shapes",
    ),
    "missing tensor": (
        both(lambda record: in_encoder(record).pop("layers.7.mlp.dense_4h_to_h.weight")),
        r"blocks\.7\.mlp\.down\.weight",
    ),
    "tensor on one rank": (edit(0, lambda record: in_encoder(record).pop("layers.7.input_norm.weight")), "not on both"),
    "NaN": (edit(1, lambda record: in_encoder(record)["layers.7.self_attention.dense.weight"].fill_(torch.nan)), "NaN"),
    "NaN in a copy": (
        edit(1, lambda record: in_encoder(record)["layers.7.input_norm.weight"].fill_(torch.nan)),
        r"layers\.7\.input_norm\.weight holds NaN",
    ),
    "integers": (
        lambda folder: [
            edit(i, lambda r: in_encoder(r).update({"final_norm.bias": torch.ones(32).int()}))(folder) for i in (0, 1)
        ],
        "floating-point",
    ),
    "hidden": (set_arg("hidden_size", 64), r"shape .*asks for"),
    "heads": (set_arg("num_attention_heads", 8), r"shape .*asks for"),
    "head size": (set_arg("kv_channels", 5), r"shape .*asks for"),
    "vocabulary": (set_arg("padded_vocab_size", 128), r"embedding\.weight has shape \[96, 32\]"),
    "no such option": (edit(0, lambda record: delattr(record["args"], "num_layers")), "num_layers"),
    "grouped queries": (set_arg("group_query_attention", True), "group_query_attention"),
    "experts": (set_arg("num_experts", 8), "num_experts"),
    "alibi": (set_arg("position_embedding_type", "alibi"), "alibi"),
    "version": (edit(0, lambda record: record.update(checkpoint_version=1.0)), "checkpoint version"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_checkpoints_are_refused(case: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    spoil, message = BAD[case]
    source = write_checkpoint(tmp_path / "released", weights, 2)
    spoil(source)
    with pytest.raises(OpenbookError, match=message) as caught:
        convert_model("megatron-legacy", source, tmp_path / "model", EIGHT)
    assert caught.value.field
    assert not (tmp_path / "model").exists()
