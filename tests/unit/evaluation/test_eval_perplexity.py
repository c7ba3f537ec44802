"""Perplexity against transformers' own figure, and ON against one forward pass for every token."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from book_fake import Book, BookServicer, serve_book
from eval_support import ROOT, factbook_texts, save_tiny
from numpy.typing import NDArray
from trainer_fakes import SNAPSHOT, M, byte_tokenizer
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core.errors import ConfigError, InputError, MismatchError, UnavailableError
from openbook_core.tokenizer import Tokenizer
from openbook_core.weights import DEFAULT_MODEL, resolve_model
from openbook_model import RetroModel
from openbook_trainer.eval.half import in_half
from openbook_trainer.eval.perplexity import PerplexityConfig, evaluate
from openbook_trainer.eval.texts import read_texts

sys.path.insert(0, str(ROOT / "benchmarks"))
from perplexity_wikitext2 import transformers_nats


def ascii_rows(documents: int, characters: int) -> list[dict[str, str]]:
    rows = factbook_texts(documents, characters)
    return [{**row, "text": row["text"].encode("ascii", "replace").decode()} for row in rows]


# The measured ones are the first two and one whose second chunk is blank, so that it asks for nothing.
ROWS = [*ascii_rows(2, 61), {"id": "blank", "text": "capital" + 17 * " " + "the city of the north, and"}]
BOOK = Book({row["id"]: row["text"] for row in [*ascii_rows(20, 90), *ROWS]})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = serve_book(BookServicer(BOOK))
    yield server.address
    server.stop(0)


def measure(**settings: Any) -> dict[str, Any]:
    return evaluate(PerplexityConfig.parse({"device": "cpu", **settings}))


def write_documents(path: Path, rows: list[dict[str, str]] = ROWS) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


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


Found = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def neighbours_of(rows: list[dict[str, str]], only: Callable[[str], bool], k: int = 2) -> list[Found]:
    """Tokens [k, 2M] and lengths [k] for each whole chunk of each row, from the book's documents that `only` lets in."""
    found: list[Found] = []
    for row in rows:
        banned = frozenset(name for name in BOOK.documents if name == row["id"] or not only(name))
        found.append([])
        for start in range(0, (len(row["text"]) - 1) // M * M, M):
            chunk = row["text"][start : start + M]
            ids, lengths = np.zeros((k, 2 * M), np.int64), np.zeros(k, np.int64)
            for place, number in enumerate(BOOK.search(chunk, k, banned) if chunk.strip() else ()):
                ids[place], lengths[place] = BOOK.rows[number].tokens, sum(BOOK.rows[number].lengths)
            found[-1].append((ids, lengths))
    return found


@torch.no_grad()
def nats_one_by_one(
    model: RetroModel, rows: list[dict[str, str]], neighbours: list[Found] | None, block: int, stride: int
) -> list[list[float]]:
    """Each token from a forward pass of its own over just what comes before it in its window."""
    nats: list[list[float]] = []
    for number, row in enumerate(rows):
        tokens = torch.from_numpy(byte_tokenizer().encode(row["text"]).astype(np.int64))
        nats.append([])
        for target in range(1, len(tokens)):
            begin = max(0, math.ceil((target - block) / stride)) * stride
            context = tokens[None, begin:target]
            ids = lengths = None
            if neighbours is not None:
                chosen = neighbours[number][begin // M :][: context.shape[1] // M]
                ids = torch.from_numpy(np.array([one for one, _ in chosen]).reshape(1, len(chosen), 2, 2 * M))
                lengths = torch.from_numpy(np.array([one for _, one in chosen]).reshape(1, len(chosen), 2))
            logits = model(context, ids, lengths, first_chunk=M)[0, -1]
            nats[-1].append(-float(logits.double().log_softmax(0)[tokens[target]]))
    return nats


def mean(nats: list[list[float]]) -> float:
    return sum(map(sum, nats)) / sum(map(len, nats))


@pytest.mark.parametrize(("block", "stride"), [(32, 16), (24, 24)])
def test_every_side_is_one_forward_pass_per_token(tmp_path: Path, address: str, block: int, stride: int) -> None:
    model = save_tiny(tmp_path / "model")
    data = tmp_path / "book.jsonl"
    write_documents(data)
    figures = measure(
        model=str(tmp_path / "model"), data=data, database="book", retriever=address, block=block, stride=stride
    )
    neighbours = neighbours_of(ROWS, lambda name: True)
    flat = [found for document in neighbours for found in document]
    moved = iter(flat[-(len(flat) // 2) :] + flat[: -(len(flat) // 2)])
    shuffled = [[next(moved) for _ in document] for document in neighbours]
    halved = neighbours_of(ROWS, in_half)
    sides = {"off": None, "on": neighbours, "half": halved, "shuffled": shuffled}
    nats = {side: nats_one_by_one(model, ROWS, given, block, stride) for side, given in sides.items()}
    for side, found in nats.items():
        assert figures[side]["nats_per_token"] == pytest.approx(mean(found), rel=1e-5), side
    pairs = (("on", "off"), ("half", "off"), ("half", "on"), ("shuffled", "on"))
    for one, other in pairs:
        difference = figures[f"{one}_minus_{other}"]["nats_per_token"]
        assert difference == pytest.approx(mean(nats[one]) - mean(nats[other]), rel=1e-3)
        assert abs(difference) > 1e-4
    # The model's only cross attention is in its last layer, so a token that reads nothing is as it is OFF.
    same = sum(
        a == b for one, other in zip(nats["on"], nats["off"], strict=True) for a, b in zip(one, other, strict=True)
    )
    assert figures["tokens_without_neighbours"] == same > 3 * (M - 1)
    whole, half = flat, [found for document in halved for found in document]
    assert figures["half_of_the_database"] == {
        "chunks": len(half),
        "chunks_with_the_neighbours_of_on": sum(
            np.array_equal(a, b) for (a, _), (b, _) in zip(whole, half, strict=True)
        ),
        "chunks_short_after_over_fetching": 0,
        "most_over_fetched": 1000,
    }
    check_overlap(figures["overlap"], nats)
    assert figures["snapshot"] == SNAPSHOT
    assert figures["standard_errors"] == "clustered by document (3)"
    assert figures["documents_excluded_for_themselves"] == 3


def check_overlap(rows: list[dict[str, Any]], nats: dict[str, list[list[float]]]) -> None:
    """Bits per byte over the chunks with r up to each threshold; r by trying each piece of a chunk's text."""
    assert len({row["chunks"] for row in rows}) > 3
    for row in rows:
        bits = {"off": 0.0, "on": 0.0}
        chunks = count = 0
        for number, document in enumerate(ROWS):
            text: str = document["text"]
            before: list[str] = []
            for start in range(0, len(text), M):
                chunk = text[start : start + M]
                places = BOOK.search(chunk, 10, frozenset([document["id"]])) if chunk.strip() else []
                passages = [
                    byte_tokenizer().decode(BOOK.rows[place].tokens[: sum(BOOK.rows[place].lengths)])
                    for place in places
                ]
                pieces = [chunk[i:j] for i in range(len(chunk)) for j in range(i + 1, len(chunk) + 1)]
                shared = [len(piece) for piece in pieces if any(piece in passage for passage in passages + before)]
                before = passages[:2]
                if max(shared, default=0) / len(chunk) > row["r_at_most"]:
                    continue
                chunks += 1
                for target in range(max(1, start), start + len(chunk)):
                    count += 1
                    for side in bits:
                        bits[side] += nats[side][number][target - 1] / math.log(2)
        assert (row["chunks"], row["tokens"]) == (chunks, count)
        for side, found in bits.items():
            if count:
                assert row[side]["bits_per_byte"] == pytest.approx(found / count, rel=1e-5)


def test_a_gate_of_zero_asks_no_retriever(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", gate="learned")
    data = tmp_path / "book.jsonl"
    write_documents(data)
    settings = ["--model", str(tmp_path / "model"), "--data", str(data), "--json", str(tmp_path / "figures.json")]
    settings += ["--database", "book", "--retriever", "127.0.0.1:1"]
    done = CliRunner().invoke(app, ["eval", "perplexity", *settings])
    assert done.exit_code == 0, done.output
    assert "cross_attention: off (gate 0)" in done.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["on"] is None
    assert figures["shuffled"] is None
    assert figures["off"]["word_perplexity"] is None
    assert not figures["gate"]["passed"]


def test_without_a_database_only_off(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    data = tmp_path / "book.txt"
    data.write_text(factbook_texts(1, 200)[0]["text"], encoding="utf-8")
    figures = measure(model=str(tmp_path / "model"), data=data)
    assert figures["cross_attention"] == "on"
    assert figures["on"] is None
    assert "no --database" in figures["note"]
    assert figures["gate"] is None
    assert figures["standard_errors"].startswith("clustered by block of 32")


def test_what_cannot_be_measured(tmp_path: Path, address: str) -> None:
    save_tiny(tmp_path / "model")
    data = tmp_path / "book.jsonl"
    write_documents(data)
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
