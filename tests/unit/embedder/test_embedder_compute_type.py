"""bfloat16 by default only where it is faster, close, and finds the same: each gate alone, with faked speed and vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from openbook_core.probes import PROBE_TEXTS, lowest_cosine
from openbook_embedder.compute_type import PASSAGES, judge_bfloat16
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.network import TorchNetwork
from openbook_embedder.recall import top_overlap

Vectors = NDArray[np.float32]


def unit(vectors_ND: Vectors) -> Vectors:
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)


# Almost one direction, so that who is nearest hangs on small parts, as for texts of one subject.
CENTRE_D = unit(np.random.default_rng(1).normal(size=(1, 64)))
EXACT_ND = unit(CENTRE_D + 0.01 * np.random.default_rng(2).normal(size=(len(PASSAGES), 64)))


def other(noise: float, probes: float = 0.0) -> Vectors:
    rng = np.random.default_rng(3)
    shifted_ND = EXACT_ND + noise * rng.normal(size=EXACT_ND.shape)
    shifted_ND[: len(PROBE_TEXTS)] += probes * rng.normal(size=(len(PROBE_TEXTS), 64))
    return unit(shifted_ND)


def judge(exact_s: float, reduced_s: float, reduced_ND: Vectors) -> tuple[bool, str]:
    def both(texts: Sequence[str]) -> list[Vectors]:
        assert tuple(texts) == PASSAGES
        return [EXACT_ND, reduced_ND]

    return judge_bfloat16(exact_s, reduced_s, both)


def test_all_gates_are_passed() -> None:
    taken, said = judge(0.2, 0.1, other(1e-7))
    assert taken
    assert said.startswith("float32 200.0 ms, bfloat16 100.0 ms; ") and "100.00% stay" in said


def test_one_that_is_not_faster_enough_is_not_even_compared() -> None:
    def both(texts: Sequence[str]) -> list[Vectors]:
        raise AssertionError

    assert judge_bfloat16(0.129, 0.1, both) == (
        False,
        "float32 129.0 ms, bfloat16 100.0 ms; it takes 1.3 times the speed",
    )
    assert judge(0.131, 0.1, EXACT_ND)[0]


def test_one_that_is_far_on_a_probe_is_not_taken() -> None:
    taken, said = judge(0.2, 0.1, other(0.0, probes=0.01))
    assert not taken and said.endswith("less than 0.999")


def test_one_that_finds_others_is_not_taken_however_close_it_is() -> None:
    reduced_ND = other(4e-4)
    assert lowest_cosine(EXACT_ND, reduced_ND) > 0.9999
    assert top_overlap(EXACT_ND, reduced_ND, 10) < 0.99
    taken, said = judge(9.0, 0.1, reduced_ND)
    assert not taken and said.endswith("stay, less than 99%")


@pytest.mark.parametrize(("change", "dtype"), [(0.0, "bfloat16"), (0.02, "float32")])
def test_the_engine_asks_and_logs(
    encoder_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: float,
    dtype: str,
) -> None:
    """The faked bfloat16 is float32 with noise of a size that keeps every cosine, and not the nearest."""

    class Changed(TorchNetwork):
        def vectors(self, ids_NT: NDArray[np.int64], mask_NT: NDArray[np.int64]) -> Vectors:
            exact_ND = super().vectors(ids_NT, mask_NT)
            noise_ND = np.random.default_rng(int(ids_NT.sum())).normal(size=exact_ND.shape) / exact_ND.shape[1] ** 0.5
            return unit(exact_ND + change * noise_ND)

    monkeypatch.setattr(EncoderEngine, "_fastest_s", lambda *_: (0.2, 0.1))
    monkeypatch.setattr(
        TorchNetwork, "to_bfloat16", lambda self: Changed(self._module, self._head, "bfloat16", self.device)
    )
    with caplog.at_level("INFO"):
        engine = EncoderEngine.load(encoder_of("bert"))
    assert engine.dtype == dtype and f"dtype auto: {dtype} on cpu" in caplog.text and "% stay" in caplog.text
    plain = EncoderEngine.load(encoder_of("bert"), dtype="float32")
    assert np.abs(engine.probe_vectors - plain.probe_vectors).max() <= 1e-5
    assert lowest_cosine(engine.encode(["Canada"]), plain.encode(["Canada"])) > 0.99999 or dtype == "bfloat16"
