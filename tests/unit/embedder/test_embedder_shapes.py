"""Batches padded up to fixed shapes: on the CPU without graphs, against the network as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_encoders import POSITIONS, write_encoder
from torch import Tensor

from openbook_core.errors import ArgumentError, ConfigError, OpenbookError
from openbook_embedder.architecture import ARCHITECTURES
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.network import TorchNetwork, resolve_device
from openbook_embedder.pooling import pool
from openbook_embedder.shapes import FixedShapes, rerun, usual_shapes

PAD = 1


def batch(lengths: list[int], seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    ids_NT = np.full((len(lengths), max(lengths)), PAD)
    mask_NT = np.zeros_like(ids_NT)
    for row, length in enumerate(lengths):
        ids_NT[row, :length] = random.integers(5, 200, length)
        mask_NT[row, :length] = 1
    return ids_NT, mask_NT


@pytest.mark.parametrize(("kind", "pooling"), zip(sorted(ARCHITECTURES), ["mean", "cls", "last"] * 2, strict=True))
def test_padding_up_to_a_shape_changes_nothing(
    encoder_of: Callable[[str], Path], kind: str, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = partial(pool, pooling=pooling, normalize=True)
    plain, fixed = (TorchNetwork.load(encoder_of(kind), head) for _ in range(2))
    monkeypatch.setattr("openbook_embedder.network.usual_shapes", lambda tokens: [(2, 8), (8, 8), (4, 32), (8, 32)])
    seen = []

    def run(ids_NT: Tensor, mask_NT: Tensor | None) -> Tensor:
        seen.append((tuple(ids_NT.shape), mask_NT is None))
        return plain._run(ids_NT, mask_NT)

    monkeypatch.setattr(fixed, "_run", run)
    fixed.fix_shapes(POSITIONS, PAD, rerun)
    for lengths, shape, full in (
        ([3], (2, 8), False),
        ([8, 1, 5], (8, 8), False),
        ([8, 8, 8], (8, 8), True),  # the rows that fill up are as long as the others
        ([9], (4, 32), False),
        ([32] * 8, (8, 32), True),
        ([5, 2], (2, 8), False),
        ([2] * 9, (9, 2), True),  # more rows than any shape has: as it is
        ([33, 4], (2, 33), False),
    ):
        ids_NT, mask_NT = batch(lengths)
        masked = torch.from_numpy(ids_NT), torch.from_numpy(mask_NT)
        with torch.inference_mode():
            wanted_ND = plain._head(plain._hidden(*masked), masked[1]).numpy()
        seen.clear()
        assert np.abs(fixed.vectors(ids_NT, mask_NT) - wanted_ND).max() <= 1e-5
        assert np.abs(plain.vectors(ids_NT, mask_NT) - wanted_ND).max() <= 1e-5
        assert seen == [(shape, full)]


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(deadline=None)
def test_nothing_is_left_of_the_batch_before(lengths: list[int], seed: int) -> None:
    """The oracle needs no network: each row's sum over its tokens, and the row that fills up counts nowhere."""
    ids_NT, mask_NT = batch(lengths, seed)
    for tokens in (ids_NT, ids_NT[::-1, :1]):
        found_N = SUMS(tokens.copy(), mask_NT[:, : tokens.shape[1]].copy())
        assert found_N is not None
        assert found_N.numpy().tolist() == (tokens * mask_NT[:, : tokens.shape[1]]).sum(1).tolist()


def sums(ids_NT: Tensor, mask_NT: Tensor | None) -> Tensor:
    if mask_NT is None:
        return ids_NT.sum(1)
    assert mask_NT.sum(1).min() >= 1
    return (ids_NT * mask_NT).sum(1)


SUMS = FixedShapes(sums, [(2, 4), (8, 4), (8, 16)], pad_id=PAD, device="cpu", record=rerun)


def test_the_usual_shapes_hold_whole_chunks_and_stay_bounded() -> None:
    for limit in (1, 40, 256, 512, 8192):
        shapes = usual_shapes(limit)
        assert len(shapes) == len(set(shapes)) <= 90
        assert max(tokens for _, tokens in shapes) == min(limit, 512)
        assert all(rows * tokens <= 8192 for rows, tokens in shapes)
    fixed = FixedShapes(sums, usual_shapes(256), pad_id=PAD, device="cpu", record=rerun)
    # 64 tokens of a language model are about 75 of the encoder's: padding stays below a third.
    for rows, tokens in ((1, 75), (16, 70), (61, 66), (1, 9)):
        shape = fixed.shape_for(rows, tokens)
        assert shape is not None and shape[0] >= rows and shape[1] >= tokens
    assert fixed.shape_for(60, 75) == (64, 80)
    assert fixed.shape_for(1, 257) is None and fixed.shape_for(200, 64) is None


def test_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (resolve_device("auto"), resolve_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(ConfigError, match=r"given 'cuda', and torch .* take cpu") as refused:
        EncoderEngine.load(write_encoder(tmp_path / "model", "bert"), device="cuda")
    assert refused.value.field == "device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (resolve_device("auto"), resolve_device("cuda"), resolve_device("cpu")) == ("cuda", "cuda", "cpu")
    with pytest.raises(ArgumentError, match="device: given 'tpu'; known: auto, cpu, cuda"):
        EncoderEngine.load(tmp_path / "model", device="tpu")  # type: ignore[arg-type]


def test_what_the_last_bits_follow_from_on_a_gpu(
    encoder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch, "compile", lambda run, **options: run)
    monkeypatch.setattr("openbook_embedder.network.usual_shapes", lambda tokens: [(2, 8)])
    engine = EncoderEngine.load(encoder_of("bert"), dtype="float32")
    network = engine._network
    assert isinstance(network, TorchNetwork)
    assert (engine.device, engine.batch_tokens) == ("cpu", 4096)
    assert engine.enough_tokens == min(4096, 256 * torch.get_num_threads())
    network.device = "cuda"
    plain = {"gpu": "a card", "torch": torch.__version__, "compile": "off", "graphs": "off"}
    assert engine.arithmetic == plain
    assert (engine.device, engine.batch_tokens, engine.enough_tokens) == ("cuda", 16_384, 16_384)
    network.device = "cpu"
    network.fix_shapes(POSITIONS, PAD, rerun)
    network.compile()
    network.device = "cuda"
    assert engine.arithmetic == {**plain, "compile": "on", "graphs": "on"}
    network.device = "cpu"
    assert engine.arithmetic["compile"] == "on"


def test_compiled_for_all_lengths(encoder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the compiler's front; the code that it writes is torch's affair, and takes a minute."""
    plain = EncoderEngine.load(encoder_of("bert"), dtype="float32")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **options: compile_(run, backend="eager", **options))
    compiled = EncoderEngine.load(encoder_of("bert"), dtype="float32", compile=True)
    assert np.abs(compiled.probe_vectors - plain.probe_vectors).max() <= 1e-5
    assert np.abs(compiled.encode_batch([[7, 8, 9]]) - plain.encode_batch([[7, 8, 9]])).max() <= 1e-5


def test_what_does_not_compile_or_compiles_to_something_else(
    encoder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: object, **options: object) -> object:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(OpenbookError, match="does not compile for cpu; start with --no-compile: no compiler"):
        EncoderEngine.load(encoder_of("bert"), dtype="float32", compile=True)
    monkeypatch.setattr(torch, "compile", lambda run, **options: lambda *inputs: run(*inputs).flip(-1))
    with pytest.raises(OpenbookError, match="changed the vectors"):
        EncoderEngine.load(encoder_of("bert"), dtype="float32", compile=True)
