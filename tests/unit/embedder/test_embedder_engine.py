"""The encoder against transformers by hand, on the real MiniLM."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from openbook_core.errors import ArgumentError, InputError, NotFoundError
from openbook_core.probes import PROBE_TEXTS
from openbook_core.weights import DEFAULT_EMBEDDER, resolve_model
from openbook_database.encoder import Encoder
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.queueing import BATCH_COST_TOKENS

LONG = "government " * 400


@pytest.fixture(scope="module")
def engine() -> EncoderEngine:
    return EncoderEngine.load(DEFAULT_EMBEDDER, dtype="float32")


def by_hand(texts: list[str]) -> NDArray[np.float32]:
    """One text at a time, so without padding: last hidden state, mean, length one."""
    folder = str(resolve_model(DEFAULT_EMBEDDER))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    vectors = []
    with torch.no_grad():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            mean_D = model(**inputs).last_hidden_state[0].mean(dim=0).numpy()
            vectors.append(mean_D / np.linalg.norm(mean_D))
    return np.stack(vectors)


def test_agrees_with_transformers_by_hand(engine: EncoderEngine) -> None:
    texts = [*PROBE_TEXTS, LONG]
    vectors_ND = engine.encode(texts)
    assert vectors_ND.dtype == np.float32
    assert vectors_ND.shape == (33, 384) == (33, engine.dimension)
    cosines = (vectors_ND * by_hand(texts)).sum(axis=1)
    assert cosines.min() >= 0.99999
    assert np.allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-5)
    assert engine.max_tokens == 256


def test_the_same_list_gives_the_same_bytes_in_order(engine: EncoderEngine) -> None:
    texts = [*PROBE_TEXTS[:6], LONG, "Canada"]
    assert engine.encode(texts).tobytes() == engine.encode(texts).tobytes()
    turned_ND = engine.encode(texts[::-1])[::-1]
    assert np.abs(turned_ND - engine.encode(texts)).max() <= 1e-5
    assert engine.encode([]).shape == (0, 384)


@given(st.lists(st.integers(1, 256), max_size=80))
@settings(max_examples=100, deadline=None)
def test_sub_batches_hold_every_text_once_with_little_padding(engine: EncoderEngine, lengths: list[int]) -> None:
    batches = engine.sub_batches([[0] * length for length in lengths])
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        widths = [lengths[place] for place in batch]
        assert widths == sorted(widths, reverse=True)
        assert widths[0] * len(widths) <= 1024
        assert widths[0] * len(widths) - sum(widths) <= BATCH_COST_TOKENS
    assert len(engine.sub_batches([[0] * 64] * 16)) == 1


def test_snapshots_refer_to_this_fingerprint(engine: EncoderEngine) -> None:
    assert engine.fingerprint.digest == "2ba07e257bddfb76eb10f535c9e2bc2cb86d30e0c4e2b453c16fedd18fa5d01b"


def test_is_what_a_build_needs_and_probes_are_the_ones_of_snapshots(engine: EncoderEngine) -> None:
    encoder: Encoder = engine
    assert encoder.dtype == "float32"
    assert engine.probe_texts == PROBE_TEXTS
    assert np.abs(engine.probe_vectors - engine.encode(PROBE_TEXTS)).max() <= 1e-6


def test_the_compute_type_leaves_the_fingerprint_and_the_probes(engine: EncoderEngine) -> None:
    reduced = EncoderEngine.load(DEFAULT_EMBEDDER, dtype="bfloat16")
    assert reduced.dtype == "bfloat16"
    assert reduced.probe_vectors.dtype == np.float32
    assert reduced.fingerprint == engine.fingerprint
    assert (reduced.probe_vectors * engine.probe_vectors).sum(axis=1).min() >= 0.999
    assert np.abs(reduced.probe_vectors - engine.probe_vectors).max() > 1e-5


def test_auto_takes_one_of_the_two_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        chosen = EncoderEngine.load(DEFAULT_EMBEDDER, dtype="auto")
    assert chosen.dtype in ("float32", "bfloat16")
    assert f"dtype auto: {chosen.dtype}" in caplog.text


@pytest.mark.parametrize("name", ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"])
def test_compiled_kernels_are_bounded_unless_the_user_says_otherwise(
    engine: EncoderEngine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert engine.dimension and os.environ[name] == "64"
    monkeypatch.setenv(name, "16")
    EncoderEngine.load(DEFAULT_EMBEDDER, dtype="float32")
    assert os.environ[name] == "16"


def test_token_counts_and_cuts(engine: EncoderEngine) -> None:
    tokenized = engine.tokenize(["Canada", LONG])
    assert tokenized.counts == [3, 256]
    assert tokenized.truncated == [False, True]


def copy_of(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve_model(DEFAULT_EMBEDDER), tmp_path / "model"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_prompt_and_a_limit_are_part_of_the_fingerprint(engine: EncoderEngine, tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    edit(folder / "config_sentence_transformers.json", prompts={"query": "query: "})
    edit(folder / "sentence_bert_config.json", max_seq_length=128)
    other = EncoderEngine.load(folder, dtype="float32")
    record, ours = other.fingerprint.record, engine.fingerprint.record
    assert {key for key in ours if record[key] != ours[key]} == {"prompts", "max_tokens"}
    assert np.abs(other.encode_queries(["Canada"]) - engine.encode(["query: Canada"])).max() <= 1e-6
    assert np.abs(other.encode(["Canada"]) - engine.encode(["Canada"])).max() <= 1e-6


@pytest.mark.parametrize(
    ("broken", "message"),
    [("config.json", "no config.json"), ("tokenizer.json", "tokenizer.json"), ("model.safetensors", "do not load")],
)
def test_a_folder_that_lacks_a_file(tmp_path: Path, broken: str, message: str) -> None:
    folder = copy_of(tmp_path)
    (folder / broken).unlink()
    with pytest.raises(InputError, match=message):
        EncoderEngine.load(folder, dtype="float32")


def test_weights_of_another_depth_are_refused(tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    edit(folder / "config.json", num_hidden_layers=7)
    with pytest.raises(InputError, match="lack 16 tensors"):
        EncoderEngine.load(folder, dtype="float32")


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(ArgumentError, match="'float16'; known: auto, float32, bfloat16") as refused:
        EncoderEngine.load(DEFAULT_EMBEDDER, dtype="float16")  # type: ignore[arg-type]
    assert refused.value.field == "dtype"


def test_an_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        EncoderEngine.load(tmp_path / "absent")
