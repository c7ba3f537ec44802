"""Windows score each token once; what tokens stand for adds up to the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from eval_support import factbook_texts
from hypothesis import given
from hypothesis import strategies as st
from trainer_fakes import byte_tokenizer

from openbook_core.errors import ConfigError, InputError
from openbook_model import RetroConfig
from openbook_trainer.eval.clusters import cluster
from openbook_trainer.eval.texts import kind_of, read_texts
from openbook_trainer.eval.windows import Sliding, resolve_sliding

CONFIG = RetroConfig(vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, chunk_length=8, max_positions=100)


@given(st.data(), st.integers(1, 200), st.integers(1, 40))
def test_each_token_is_predicted_once_from_the_context_promised(data: st.DataObject, tokens: int, block: int) -> None:
    stride = data.draw(st.integers(1, block))
    predicted = []
    for window in Sliding(block, stride).windows(tokens):
        assert 1 <= window.inputs <= block
        assert window.first + window.inputs < tokens
        for position in range(window.unscored, window.inputs):
            token = window.first + position + 1
            assert position + 1 >= min(token, block - stride + 1)
            predicted.append(token)
    assert predicted == list(range(1, tokens))


def test_defaults_and_chunk_borders() -> None:
    assert resolve_sliding(CONFIG, None, None, grid=False) == Sliding(100, 50)
    assert resolve_sliding(CONFIG, None, None, grid=True) == Sliding(96, 48)
    assert resolve_sliding(CONFIG, 30, 7, grid=False) == Sliding(30, 7)
    long = RetroConfig(vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, max_positions=8192)
    assert resolve_sliding(long, None, None, grid=True) == Sliding(1024, 512)


@pytest.mark.parametrize(
    ("block", "stride", "message"),
    [(101, None, "100 positions"), (16, 17, "leaves tokens out"), (30, 8, "block: 30.*take 24"), (32, 12, "take 8")],
)
def test_impossible_windows(block: int, stride: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_sliding(CONFIG, block, stride, grid=True)


def test_bytes_and_words_add_up(tmp_path: Path) -> None:
    text = " \n = Côte d'Ivoire = \n \n The 東京 coast , it @-@ is  long . \n"
    path = tmp_path / "wiki.tokens"
    path.write_text(text, encoding="utf-8")
    (found,) = read_texts(path, byte_tokenizer())
    assert found.text == text
    count = len(found.tokens_N)
    assert count == len(text.encode())
    assert found.bytes_of(0, count) == len(text.encode())
    assert found.words_of(0, count) == len(text.split()) + text.count("\n")
    for place in range(count):
        assert found.words_of(0, place) + found.words_of(place, count) == found.words_of(0, count)
        assert found.bytes_of(0, place) + found.bytes_of(place, count) == found.bytes_of(0, count)
    clusters = cluster([found], Sliding(8, 4), words=True)
    assert clusters.tokens_C.sum() == count - 1
    assert clusters.bytes_C.sum() == len(text.encode()) - 1
    assert found.token_bytes.tolist() == [found.bytes_of(place, place + 1) for place in range(count)]
    assert clusters.words_C is not None
    assert clusters.words_C.sum() == found.words_of(0, count)
    totals = clusters.totals([np.arange(count - 1, dtype=np.float64)])
    assert totals.sum() == np.arange(count - 1).sum()
    assert totals[0] == np.arange(8).sum()


def test_the_limit_counts_tokens_over_documents(tmp_path: Path) -> None:
    import json

    rows = factbook_texts(3, 50)
    path = tmp_path / "book.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    whole = read_texts(path, byte_tokenizer())
    assert [text.external_id for text in whole] == [row["id"] for row in rows]
    cut = read_texts(path, byte_tokenizer(), 60)
    assert [len(text.tokens_N) for text in cut] == [len(whole[0].tokens_N), 60 - len(whole[0].tokens_N)]
    np.testing.assert_array_equal(cut[1].tokens_N, whole[1].tokens_N[: len(cut[1].tokens_N)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "no document of two"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.csv", b"a,b", "given .csv"),
        ("a.jsonl", b"{", "line 1: is not JSON"),
        ("a.tokens.zst", b"no zstandard", "damaged"),
    ],
)
def test_what_is_no_text(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(path, byte_tokenizer())


def test_kinds_by_name() -> None:
    names = ("wiki.test.tokens.zst", "book.jsonl.gz", "plain.txt")
    assert [kind_of(Path(name)) for name in names] == ["wikitext", "documents", "text"]
