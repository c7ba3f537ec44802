"""Perplexity against transformers' own figure, and ON against one forward pass for every token."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_support import factbook_texts, save_tiny, transformers_nats
from numpy.typing import NDArray
from trainer_fakes import SNAPSHOT, FakeRetriever, M, byte_tokenizer, serve_retriever
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core.errors import ConfigError, InputError, MismatchError, UnavailableError
from openbook_core.tokenizer import Tokenizer
from openbook_core.weights import DEFAULT_MODEL, resolve_model
from openbook_model import RetroModel
from openbook_trainer.eval.perplexity import PerplexityConfig, evaluate
from openbook_trainer.eval.texts import read_texts


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = serve_retriever()
    yield server.address
    server.stop(0)


def measure(**settings: Any) -> dict[str, Any]:
    return evaluate(PerplexityConfig.parse({"device": "cpu", **settings}))


def write_documents(path: Path, documents: int, characters: int) -> list[dict[str, str]]:
    rows = [
        {**row, "text": row["text"].encode("ascii", "replace").decode()}
        for row in factbook_texts(documents, characters)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return rows


@pytest.mark.parametrize(("block", "stride"), [(64, 32), (64, 64), (48, 7)])
def test_a_random_llama_on_the_factbook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, stride: int
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setenv("OPENBOOK_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(4)
    settings = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        initializer_range=0.4,
    )
    twin = LlamaForCausalLM(settings).eval()
    twin.save_pretrained(tmp_path / "twin")
    byte_tokenizer().save(tmp_path / "twin")
    data = tmp_path / "book.txt"
    text = factbook_texts(1, 700)[0]["text"] + "\n"
    data.write_text(text, encoding="utf-8")
    figures = measure(model=str(tmp_path / "twin"), data=data, block=block, stride=stride, words=True)
    tokens_N = byte_tokenizer().encode(text)
    wanted = transformers_nats(twin, tokens_N, block + 1, stride)
    assert figures["off"]["nats_per_token"] == pytest.approx(wanted, rel=1e-5)
    assert figures["off"]["perplexity"] == pytest.approx(math.exp(wanted), rel=1e-4)
    count = len(tokens_N) - 1
    assert figures["tokens_scored"] == count
    assert figures["off"]["bits_per_byte"] == pytest.approx(wanted / math.log(2), rel=1e-5)
    words = len(text.split()) - 1  # the first word, "#", is the first token, which nothing predicts
    assert math.log(figures["off"]["word_perplexity"]) == pytest.approx(wanted * count / words, rel=1e-5)
    assert figures["cross_attention"] == "off (gate 0)"
    assert figures["on"] is None


def test_smollm2_on_wikitext_as_transformers_has_it(tmp_path: Path) -> None:
    folder = os.environ.get("OPENBOOK_DATA")
    if not folder:
        pytest.skip("OPENBOOK_DATA is not set to a folder with wikitext2/wiki.test.tokens.zst (CC-BY-SA, not shipped)")
    from transformers import AutoModelForCausalLM

    data = Path(folder) / "wikitext2" / "wiki.test.tokens.zst"
    figures = measure(model=DEFAULT_MODEL, data=data, limit_tokens=500, block=256, stride=128)
    source = resolve_model(DEFAULT_MODEL)
    place = (source.parent, source.name) if source.is_file() else (source, None)
    twin = AutoModelForCausalLM.from_pretrained(place[0], gguf_file=place[1], dtype=torch.float32).eval()
    tokenizer = Tokenizer.load(DEFAULT_MODEL)
    (text,) = read_texts(data, tokenizer)
    assert text.words_of(0, len(text.tokens_N)) == 245569  # the published size of the test set
    wanted = transformers_nats(twin, text.tokens_N[:500], 257, 128)
    assert figures["off"]["perplexity"] == pytest.approx(math.exp(wanted), rel=1e-3)


def neighbours_of(rows: list[dict[str, str]], k: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """What the fake retriever answers for each chunk of the rows, asked directly."""
    found = []
    for row in rows:
        text = row["text"]
        for start in range(0, (len(text) - 1) // M * M, M):
            chunk = text[start : start + M]
            if not chunk.strip():
                found.append((np.zeros((k, 2 * M), np.int64), np.zeros(k, np.int64)))
                continue
            reply = FakeRetriever().search_text("book", [chunk], k, exclude=[[row["id"]]])
            assert reply.chunks.tokens is not None
            assert reply.chunks.lengths is not None
            found.append((reply.chunks.tokens.astype(np.int64), reply.chunks.lengths.astype(np.int64).sum(1)))
    return found


@torch.no_grad()
def nats_one_by_one(
    model: RetroModel, rows: list[dict[str, str]], neighbours: list[Any] | None, block: int, stride: int
) -> float:
    """Each token from a forward pass of its own over just what comes before it in its window."""
    total, count, first_chunk = 0.0, 0, 0
    for row in rows:
        tokens = torch.from_numpy(byte_tokenizer().encode(row["text"]).astype(np.int64))
        for target in range(1, len(tokens)):
            begin = max(0, math.ceil((target - block) / stride)) * stride
            context = tokens[None, begin:target]
            ids = lengths = None
            if neighbours is not None:
                chosen = neighbours[first_chunk + begin // M :][: context.shape[1] // M]
                ids = torch.from_numpy(np.array([one for one, _ in chosen]).reshape(1, len(chosen), 2, 2 * M))
                lengths = torch.from_numpy(np.array([one for _, one in chosen]).reshape(1, len(chosen), 2))
            logits = model(context, ids, lengths, first_chunk=M)[0, -1]
            total -= float(logits.double().log_softmax(0)[tokens[target]])
            count += 1
        first_chunk += (len(tokens) - 1) // M
    return total / count


@pytest.mark.parametrize(("block", "stride"), [(32, 16), (24, 24)])
def test_on_and_shuffled_are_one_forward_pass_per_token(tmp_path: Path, address: str, block: int, stride: int) -> None:
    model = save_tiny(tmp_path / "model")
    data = tmp_path / "book.jsonl"
    rows = write_documents(data, 2, 61)
    figures = measure(
        model=str(tmp_path / "model"), data=data, database="book", retriever=address, block=block, stride=stride
    )
    neighbours = neighbours_of(rows, 2)
    half = len(neighbours) // 2
    moved = [neighbours[(place - half) % len(neighbours)] for place in range(len(neighbours))]
    for side, given in (("off", None), ("on", neighbours), ("shuffled", moved)):
        wanted = nats_one_by_one(model, rows, given, block, stride)
        assert figures[side]["nats_per_token"] == pytest.approx(wanted, rel=1e-5), side
    off, on, shuffled = (figures[side]["nats_per_token"] for side in ("off", "on", "shuffled"))
    assert min(abs(on - off), abs(on - shuffled)) > 1e-3
    assert figures["on_minus_off"]["nats_per_token"] == pytest.approx(on - off)
    assert figures["shuffled_minus_on"]["nats_per_token"] == pytest.approx(shuffled - on)
    assert figures["snapshot"] == SNAPSHOT
    assert figures["standard_errors"] == "clustered by document (2)"
    assert figures["documents_excluded_for_themselves"] == 2


def test_a_gate_of_zero_asks_no_retriever(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", gate="learned")
    data = tmp_path / "book.jsonl"
    write_documents(data, 2, 40)
    settings = ["--model", str(tmp_path / "model"), "--data", str(data), "--json", str(tmp_path / "figures.json")]
    settings += ["--database", "book", "--retriever", "127.0.0.1:1"]
    done = CliRunner().invoke(app, ["eval", "perplexity", *settings])
    assert done.exit_code == 0, done.output
    assert "cross_attention: off (gate 0)" in done.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["on"] is None
    assert figures["shuffled"] is None
    assert figures["off"]["word_perplexity"] is None


def test_without_a_database_only_off(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    data = tmp_path / "book.txt"
    data.write_text(factbook_texts(1, 200)[0]["text"], encoding="utf-8")
    figures = measure(model=str(tmp_path / "model"), data=data)
    assert figures["cross_attention"] == "on"
    assert figures["on"] is None
    assert "no --database" in figures["note"]
    assert figures["standard_errors"].startswith("clustered by block of 32")


def test_what_cannot_be_measured(tmp_path: Path, address: str) -> None:
    save_tiny(tmp_path / "model")
    data = tmp_path / "book.jsonl"
    write_documents(data, 2, 61)
    given: dict[str, Any] = {"model": str(tmp_path / "model"), "data": data, "database": "book", "retriever": address}
    with pytest.raises(ConfigError, match="go together"):
        measure(**{**given, "retriever": None})
    with pytest.raises(ConfigError, match="chunk length 8"):
        measure(**given, stride=3)
    with pytest.raises(InputError, match="1 whole chunks"):
        measure(**given, limit_tokens=12)
    with pytest.raises(ConfigError, match="limit_tokens"):
        measure(**given, limit_tokens=1)
    with pytest.raises(UnavailableError, match="openbook serve retriever"):
        measure(**{**given, "retriever": "127.0.0.1:1"})
    save_tiny(tmp_path / "other", chunk_length=16)
    with pytest.raises(MismatchError, match="chunks of 8 tokens"):
        measure(**{**given, "model": str(tmp_path / "other")})
