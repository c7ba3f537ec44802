"""A vector does not depend on the texts that shared its batch, whatever computes it.

Tolerance, as the distance of vectors of length one: 1e-5 in float32 and 0.05 in bfloat16 (cosine above 0.998), which
rounds sums that another padded width adds in another order. An int8 export is not held to one: the scale by which it
rounds a batch's activations is that of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openbook_core.weights import DEFAULT_EMBEDDER
from openbook_embedder.architecture import ARCHITECTURES
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.network import TorchNetwork
from openbook_embedder.shapes import rerun

TOLERANCES = {"float32": 1e-5, "bfloat16": 0.05, "onnx-float32": 1e-5, "openvino-float32": 1e-5}
BATCH = st.lists(st.integers(1, 64), min_size=1, max_size=6)

# What a GPU's batches are padded to, without its graphs; and the compiler's front, whose code is torch's affair.
FIXED, COMPILED = "fixed-", "compiled-"
SHAPES = [(rows, tokens) for rows in (1, 8) for tokens in (16, 64)]


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> Iterator[None]:
    """So that batches are divided between them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


# An export of the real one takes long; the tiny ones are of its kind.
ENGINES = [
    (kind, dtype)
    for kind in (*sorted(ARCHITECTURES), DEFAULT_EMBEDDER)
    for dtype in TOLERANCES
    if kind in ARCHITECTURES or "-" not in dtype
] + [
    *((kind, FIXED + dtype) for kind in sorted(ARCHITECTURES) for dtype in ("float32", "bfloat16")),
    ("bert", COMPILED + FIXED + "float32"),
]


@pytest.fixture(scope="module", params=ENGINES, ids="-".join)
def engine(
    request: pytest.FixtureRequest, encoder_of: Callable[[str], Path | str], export_of: Callable[[str, str], Path]
) -> EncoderEngine:
    kind, dtype = request.param
    if FIXED in dtype:
        return at_fixed_shapes(encoder_of(kind), dtype.rpartition("-")[2], compiled=dtype.startswith(COMPILED))
    backend, _, exported = dtype.partition("-")
    if exported:
        return EncoderEngine.load(export_of(kind, backend))
    return EncoderEngine.load(encoder_of(kind), dtype=dtype)


def at_fixed_shapes(model: Path | str, dtype: str, *, compiled: bool) -> EncoderEngine:
    engine = EncoderEngine.load(model, dtype=dtype)  # type: ignore[arg-type]
    network = engine._network
    assert isinstance(network, TorchNetwork)
    with pytest.MonkeyPatch.context() as patch:
        if compiled:
            compile_ = torch.compile
            patch.setattr(torch, "compile", lambda run, **options: compile_(run, backend="eager", **options))
            network.compile()
        patch.setattr("openbook_embedder.network.usual_shapes", lambda tokens: SHAPES)
        network.fix_shapes(64, engine._folder.architecture.pad_id, rerun)
    return engine


@given(lengths=BATCH, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batch_mates_do_not_matter(engine: EncoderEngine, lengths: list[int], seed: int) -> None:
    """Random token ids, so that lengths are exact; ids 5 and up are no special tokens in any of the models."""
    random = np.random.default_rng(seed)
    ids = [random.integers(5, 200, length).tolist() for length in lengths]
    together_ND = engine.encode_batch(ids)
    alone_ND = np.concatenate([engine.encode_batch([row]) for row in ids])
    assert np.linalg.norm(together_ND - alone_ND, axis=1).max() <= TOLERANCES[engine.dtype]
