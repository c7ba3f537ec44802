"""A vector does not depend on the texts that shared its batch.

Tolerance, as the distance of vectors of length one: 1e-5 in float32 and 0.05 in bfloat16 (cosine above 0.998), which
rounds sums that another padded width adds in another order.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_encoders import write_encoder

from openbook_core.weights import DEFAULT_EMBEDDER
from openbook_embedder.architecture import ARCHITECTURES
from openbook_embedder.config import Dtype
from openbook_embedder.engine import EncoderEngine

TOLERANCES: dict[Dtype, float] = {"float32": 1e-5, "bfloat16": 0.05}
POOLING_OF = {"roberta": "cls", "distilbert": "lasttoken", "modernbert": "lasttoken"}
BATCH = st.lists(st.integers(1, 64), min_size=1, max_size=6)


@pytest.fixture(scope="module", params=[*sorted(ARCHITECTURES), DEFAULT_EMBEDDER])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str | Path:
    kind = request.param
    if kind not in ARCHITECTURES:
        return str(kind)
    return write_encoder(tmp_path_factory.mktemp("encoders") / kind, kind, pooling=POOLING_OF.get(kind, "mean"))


@pytest.fixture(scope="module", params=sorted(set(get_args(Dtype)) - {"auto"}))
def engine(model: str | Path, request: pytest.FixtureRequest) -> EncoderEngine:
    return EncoderEngine.load(model, dtype=request.param)


@given(lengths=BATCH, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batch_mates_do_not_matter(engine: EncoderEngine, lengths: list[int], seed: int) -> None:
    """Random token ids, so that lengths are exact; ids 5 and up are no special tokens in any of the models."""
    random = np.random.default_rng(seed)
    ids = [random.integers(5, 200, length).tolist() for length in lengths]
    together_ND = engine.encode_batch(ids)
    alone_ND = np.concatenate([engine.encode_batch([row]) for row in ids])
    assert np.linalg.norm(together_ND - alone_ND, axis=1).max() <= TOLERANCES[engine.dtype]  # type: ignore[index]
