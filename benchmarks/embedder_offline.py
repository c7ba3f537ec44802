"""Texts to vectors inside one process: our engine, the bare loop that is the limit, and sentence-transformers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from embedder_sides import SentenceTransformers
from embedder_texts import Texts
from measure import in_turns, processor_s
from numpy.typing import NDArray

from openbook_embedder.engine import EncoderEngine

BATCHES = (8, 16, 32, 64)
Encode = Callable[[Sequence[str], int], dict[str, float]]


def load_encoder(model: str) -> tuple[EncoderEngine, dict[str, Any]]:
    """In the dtype that the embedder's own probe takes on this machine; and the seconds of 16 texts of 64 tokens in each.

    Where that is float32, bfloat16 is not measured any further.
    """
    engine = EncoderEngine.load(model)
    other = EncoderEngine.load(model, dtype="bfloat16" if engine.dtype == "float32" else "float32")
    ids = [[engine.tokenize(["a"]).ids[0][1]] * min(64, engine.max_tokens)] * 16
    seconds = {
        each.dtype: min(_times(partial(each.encode_batch, ids))["seconds"] for _ in range(3))
        for each in (engine, other)
    }
    note = "" if engine.dtype == "bfloat16" else "bfloat16 is slower here, so float32 alone is measured"
    return engine, {"seconds": seconds, "auto": engine.dtype, "note": note}


class BareLoop:
    """The engine's network and tokenizer without anything around them."""

    def __init__(self, engine: EncoderEngine) -> None:
        self.engine = engine

    def run(self, texts: Sequence[str], batch: int) -> dict[str, float]:
        """`seconds` and `cpu_s` to tokenise all, and to encode them in batches of `batch` texts, longest first."""

        def encode() -> None:
            ids = sorted(self.engine.tokenize(texts).ids, key=len, reverse=True)
            for place in range(0, len(ids), batch):
                self.engine.encode_batch(ids[place : place + batch])

        return _times(encode)

    def ours(self, texts: Sequence[str]) -> dict[str, float]:
        """`seconds` and `cpu_s` of the engine's own `encode`."""
        return _times(partial(self.engine.encode, texts))


def calibrate(
    bare: BareLoop, library: SentenceTransformers | None, dtype: str, texts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each side the seconds at each of BATCHES, the lesser of two trials in turns, and the quickest as `best`."""
    found = {}
    for side, encode in _batched_sides(bare, library, dtype).items():
        encode(texts[:8], 8)  # warm
        trials = in_turns({batch: partial(encode, texts, batch) for batch in BATCHES}, 2, budget_s=30)
        seconds = {batch: min(trial["seconds"] for trial in each) for batch, each in trials.items()}
        found[side] = {"seconds": seconds, "texts": len(texts), "best": min(seconds, key=seconds.__getitem__)}
    return found


def measure(
    bare: BareLoop,
    library: SentenceTransformers | None,
    dtype: str,
    texts: Sequence[str],
    batches: Mapping[str, Mapping[str, Any]],
    **limits: Any,
) -> dict[str, list[dict[str, float]]]:
    """Trials of each side in turns: texts, seconds and processor time; `limits` as of `in_turns`."""
    sides = {
        side: partial(encode, texts, batches[side]["best"])
        for side, encode in _batched_sides(bare, library, dtype).items()
    }
    sides = {"ours": partial(bare.ours, texts), **sides}

    def trial(call: Callable[[], dict[str, float]]) -> dict[str, float]:
        return {"texts": len(texts), **call()}

    return in_turns({side: partial(trial, call) for side, call in sides.items()}, **limits)


def cosines(engine: EncoderEngine, library: SentenceTransformers, texts: Texts) -> dict[str, float]:
    """Of our vectors with the library's in float32."""
    left_ND = engine.encode(texts.texts).astype("f8")
    right_ND = library.vectors(texts.texts, dtype="float32", batch=32).astype("f8")
    cosines_N: NDArray[np.float64] = (left_ND * right_ND).sum(1) / (
        np.linalg.norm(left_ND, axis=1) * np.linalg.norm(right_ND, axis=1)
    )
    return {"texts": len(cosines_N), "min": float(cosines_N.min()), "mean": float(cosines_N.mean())}


def _batched_sides(bare: BareLoop, library: SentenceTransformers | None, dtype: str) -> dict[str, Encode]:
    sides: dict[str, Encode] = {"bare": bare.run}
    if library is not None:
        for each in sorted({dtype, "float32"}):
            sides[f"sentence_transformers_{each}"] = partial(_library, library, each)
    return sides


def _library(library: SentenceTransformers, dtype: str, texts: Sequence[str], batch: int) -> dict[str, float]:
    return library.encode(texts, dtype=dtype, batch=batch)


def _times(call: Callable[[], object]) -> dict[str, float]:
    start, processor = time.perf_counter(), processor_s()
    call()
    return {"seconds": time.perf_counter() - start, "cpu_s": processor_s() - processor}
