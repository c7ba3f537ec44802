"""The benchmark's check of every shape, on a CPU without graphs, and the cards' peaks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from openbook_embedder.engine import EncoderEngine
from openbook_embedder.network import TorchNetwork
from openbook_embedder.shapes import rerun

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SHAPES = [(1, 16), (4, 16), (8, 16), (1, 64), (4, 64)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("embedder_gpu")


def test_every_shape_is_used_and_a_wrong_one_is_found(
    gpu: Any, encoder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, prepared = (EncoderEngine.load(encoder_of("bert"), dtype="float32") for _ in range(2))
    monkeypatch.setattr("openbook_embedder.network.usual_shapes", lambda tokens: SHAPES)
    network = prepared._network
    assert isinstance(network, TorchNetwork)
    network.fix_shapes(64, 1, rerun)
    fixed = network._fixed
    assert fixed is not None
    used = []

    def encode(ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        used.append((fixed.shape_for(len(ids), max(map(len, ids))), len(set(map(len, ids))) == 1))
        return prepared.encode_batch(ids)

    found = gpu.check_shapes(plain.encode_batch, encode, SHAPES, plain.vocab_size, 64)
    assert gpu.outcome(found) == {"passed": True, "batches": 18, "cosine_min": pytest.approx(1.0, abs=1e-5)}
    assert {shape for shape, _ in used} == {*SHAPES, None}
    assert {shape for shape, full in used if full} >= set(SHAPES)
    assert {shape for shape, full in used if not full} >= {shape for shape in SHAPES if shape[0] > 1}

    slot = fixed._slots[(4, 64), True]
    replay = slot.replay
    broken = type(slot)(slot.host, slot.device, lambda: (replay(), slot.out.neg_()), slot.out)
    monkeypatch.setitem(fixed._slots, ((4, 64), True), broken)
    outcome = gpu.outcome(gpu.check_shapes(plain.encode_batch, encode, SHAPES, plain.vocab_size, 64))
    assert not outcome["passed"] and outcome["cosine_min"] < 0


def test_without_a_gpu_it_says_so(
    gpu: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("measure.stop_after", lambda seconds: None)
    assert gpu.main(["--check"]) == 1
    assert "torch sees none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_the_card_s_own(gpu: Any, device: str, peak: float | None) -> None:
    assert gpu.peak_of(device) == peak
