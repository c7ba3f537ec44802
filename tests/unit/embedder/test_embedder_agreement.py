"""The encoder against sentence-transformers, on small random models of each type and on the real MiniLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tiny_encoders import DIMENSION, TEXTS, edit_json, write_encoder, write_sentence_files

from openbook_core.weights import DEFAULT_EMBEDDER, resolve_model
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine

PROMPTS = {"query": "query: ", "document": "a passage: "}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"pooling": "cls", "prompts": PROMPTS}),
    ("bert", {"pooling": "lasttoken", "normalize": False}),
    ("roberta", {"normalize": False}),
    ("xlm-roberta", {"prompts": PROMPTS}),
    ("xlm-roberta", {"pooling": "cls", "normalize": False}),
    ("mpnet", {}),
    ("distilbert", {"pooling": "cls"}),
    ("modernbert", {"prompts": PROMPTS}),
    ("modernbert", {"pooling": "lasttoken", "normalize": False, "prompts": PROMPTS}),
]


def load(folder: Path, **options: Any) -> EncoderEngine:
    return EncoderEngine.load(folder, dtype="float32", options=EncoderOptions(**options))


def assert_same(ours_ND: NDArray[np.float32], theirs_ND: NDArray[np.float32]) -> None:
    assert ours_ND.shape == theirs_ND.shape
    assert cosines(ours_ND, theirs_ND).min() >= 0.99999
    lengths_N, wanted_N = np.linalg.norm(ours_ND, axis=1), np.linalg.norm(theirs_ND, axis=1)
    assert np.abs(lengths_N / wanted_N - 1).max() <= 1e-5


def cosines(left_ND: NDArray[np.float32], right_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    left_ND, right_ND = (each.astype(np.float64) for each in (left_ND, right_ND))
    return (left_ND * right_ND).sum(1) / np.linalg.norm(left_ND, axis=1) / np.linalg.norm(right_ND, axis=1)


def oracle(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def encoded(model: SentenceTransformer, texts: Sequence[str], **options: Any) -> NDArray[np.float32]:
    return np.asarray(model.encode(list(texts), **options), dtype=np.float32)


@pytest.mark.parametrize(("model_type", "settings"), CASES, ids=lambda value: str(value))
def test_agrees_with_sentence_transformers(tmp_path: Path, model_type: str, settings: dict[str, Any]) -> None:
    folder = write_encoder(tmp_path / "model", model_type, **settings)
    engine, model = load(folder), oracle(folder)
    assert engine.dimension == DIMENSION
    passages_ND, queries_ND = engine.encode(TEXTS), engine.encode_queries(TEXTS)
    assert_same(passages_ND, np.asarray(model.encode_document(list(TEXTS))))
    assert_same(queries_ND, np.asarray(model.encode_query(list(TEXTS))))
    # The comparison can fail: other texts, and the other role where it has a prompt, are far away.
    assert np.median(cosines(passages_ND, np.roll(passages_ND, 1, axis=0))) < 0.99
    if settings.get("prompts"):
        assert np.median(cosines(passages_ND, queries_ND)) < 0.999
    assert engine.tokenize(TEXTS).truncated[-1] and engine.tokenize(TEXTS).counts[-1] == 64


def test_agrees_on_the_real_minilm() -> None:
    folder = resolve_model(DEFAULT_EMBEDDER)
    texts = [*TEXTS, "the state of the nation " * 100]
    assert_same(load(folder).encode(texts), encoded(oracle(folder), texts))


def test_a_shorter_limit_and_lower_case(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", "roberta")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9, "do_lower_case": true}')
    engine = load(folder)
    assert engine.max_tokens == 9
    assert_same(engine.encode(TEXTS), encoded(oracle(folder), TEXTS))
    assert engine.tokenize(["ABC"]).ids == engine.tokenize(["abc"]).ids


def test_texts_cut_on_the_left(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", "modernbert", pooling="lasttoken")
    edit_json(folder / "tokenizer_config.json", truncation_side="left", padding_side="left")
    assert_same(load(folder).encode(TEXTS), encoded(oracle(folder), TEXTS))


def test_an_older_layout(tmp_path: Path) -> None:
    """The network in a folder of its own, one switch per pooling mode."""
    folder = tmp_path / "model"
    write_encoder(folder / "0_Transformer", "bert", pooling=None)
    write_sentence_files(folder, pooling="cls", normalize=False, prompts=None)
    modules = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(modules.replace('"path": ""', '"path": "0_Transformer"'))
    (folder / "1_Pooling" / "config.json").write_text(
        f'{{"word_embedding_dimension": {DIMENSION}, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}}'
    )
    assert_same(load(folder).encode(TEXTS), encoded(oracle(folder), TEXTS))


def test_a_default_prompt_stands_before_texts_of_both_roles(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", "bert", pooling=None)
    prompts = {"retrieval": "retrieve: ", "query": "", "document": ""}
    write_sentence_files(folder, pooling="mean", normalize=True, prompts=prompts, default_prompt_name="retrieval")
    wanted_ND = encoded(oracle(folder), TEXTS)
    assert_same(load(folder).encode(TEXTS), wanted_ND)
    assert_same(load(folder).encode_queries(TEXTS), wanted_ND)


def test_a_plain_folder_with_options(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", "bert", pooling=None)
    model = oracle(folder)  # pools by the mean
    assert_same(load(folder, pooling="mean").encode(TEXTS), encoded(model, TEXTS, normalize_embeddings=True))
    free = load(folder, pooling="mean", normalize=False, passage_prompt="text: ", max_tokens=20)
    model.max_seq_length = 20
    assert_same(free.encode(TEXTS), encoded(model, TEXTS, prompt="text: "))
