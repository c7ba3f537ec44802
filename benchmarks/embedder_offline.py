"""Texts to vectors inside one process: our engine, the bare loop that is the limit, and sentence-transformers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from embedder_sides import LIBRARY_BATCH, LIBRARY_DTYPE, POLICIES, SentenceTransformers
from embedder_texts import Texts
from measure import in_turns, processor_s

from openbook_core.probes import cosines
from openbook_embedder.engine import EncoderEngine

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CALIBRATION_S = 60.0


@dataclass(frozen=True)
class Setting:
    """Texts in a batch; `policy` of a peer's threads (see `embedder_sides.POLICIES`)."""

    batch: int
    policy: str = ""

    @property
    def label(self) -> str:
        return f"{self.batch} {self.policy}".strip()


Encode = Callable[[Sequence[str], Setting], dict[str, float]]


def load_encoder(model: str) -> tuple[EncoderEngine, EncoderEngine, dict[str, Any]]:
    """In the dtype that the embedder's own probe takes on this machine, and in float32; and the seconds of 16 texts of
    64 tokens in either dtype.

    Where the probe takes float32, bfloat16 is not measured any further.
    """
    engine = EncoderEngine.load(model)
    other = EncoderEngine.load(model, dtype="bfloat16" if engine.dtype == "float32" else "float32")
    ids = [[engine.tokenize(["a"]).ids[0][1]] * min(64, engine.max_tokens)] * 16
    seconds = {
        each.dtype: min(_times(partial(each.encode_batch, ids))["seconds"] for _ in range(3))
        for each in (engine, other)
    }
    note = "" if engine.dtype == "bfloat16" else "bfloat16 is slower here, so float32 alone is measured"
    exact = engine if engine.dtype == "float32" else other
    return engine, exact, {"seconds": seconds, "auto": engine.dtype, "note": note}


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
    """For each side the seconds at each batch and policy, the lesser of two trials in turns, and the quickest as `best`."""
    found = {}
    for side, (encode, policies) in _sides(bare, library, dtype).items():
        settings = [Setting(batch, policy) for policy in policies for batch in BATCHES]
        for policy in policies:
            encode(texts[:8], Setting(8, policy))  # warm
        tries = {each: partial(encode, texts, each) for each in settings}
        trials = in_turns(tries, 2, budget_s=CALIBRATION_S)
        seconds = {each: min(trial["seconds"] for trial in trials[each]) for each in settings}
        best = min(seconds, key=seconds.__getitem__)
        labelled = {each.label: taken for each, taken in seconds.items()}
        found[side] = {"seconds": labelled, "texts": len(texts), "best": asdict(best)}
    return found


def measure(
    bare: BareLoop,
    library: SentenceTransformers | None,
    dtype: str,
    texts: Sequence[str],
    batches: Mapping[str, Mapping[str, Any]],
    **limits: Any,
) -> dict[str, list[dict[str, float]]]:
    """Trials of each side in turns: texts, seconds and processor time; `limits` as of `in_turns`.

    `sentence_transformers_default` is the library with nothing set, the others are at their best settings.
    """
    sides: dict[str, Callable[[], dict[str, float]]] = {"ours": partial(bare.ours, texts)}
    for side, (encode, _) in _sides(bare, library, dtype).items():
        sides[side] = partial(encode, texts, Setting(**batches[side]["best"]))
    if library is not None:
        default = Setting(LIBRARY_BATCH, "default")
        sides["sentence_transformers_default"] = partial(_library, library, LIBRARY_DTYPE, texts, default)

    def trial(call: Callable[[], dict[str, float]]) -> dict[str, float]:
        return {"texts": len(texts), **call()}

    return in_turns({side: partial(trial, call) for side, call in sides.items()}, **limits)


def compare_vectors(
    engines: Mapping[str, EncoderEngine], library: SentenceTransformers, texts: Texts
) -> dict[str, dict[str, float]]:
    """Cosines of our vectors, by dtype, with the library's in float32."""
    right_ND, found = library.vectors(texts.texts), {}
    for dtype, engine in engines.items():
        cosines_N = cosines(engine.encode(texts.texts), right_ND)
        found[dtype] = {"texts": len(cosines_N), "min": float(cosines_N.min()), "mean": float(cosines_N.mean())}
    return found


def _sides(
    bare: BareLoop, library: SentenceTransformers | None, dtype: str
) -> dict[str, tuple[Encode, tuple[str, ...]]]:
    """Each with the policies that it can be asked for."""
    sides: dict[str, tuple[Encode, tuple[str, ...]]] = {
        "bare": (lambda texts, setting: bare.run(texts, setting.batch), ("",))
    }
    if library is not None:
        for each in sorted({dtype, "float32"}):
            sides[f"sentence_transformers_{each}"] = (partial(_library, library, each), POLICIES)
    return sides


def _library(library: SentenceTransformers, dtype: str, texts: Sequence[str], setting: Setting) -> dict[str, float]:
    return library.encode(texts, dtype=dtype, batch=setting.batch, policy=setting.policy)


def _times(call: Callable[[], object]) -> dict[str, float]:
    start, processor = time.perf_counter(), processor_s()
    call()
    return {"seconds": time.perf_counter() - start, "cpu_s": processor_s() - processor}
