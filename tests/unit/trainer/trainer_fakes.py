"""A retriever in the process, a byte-level tokenizer and a small corpus for the trainer's tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers

from openbook_core.clients import ChunkTable, SearchResult
from openbook_core.rpc.server import RunningServer, start_server
from openbook_core.tokenizer import Tokenizer
from openbook_proto.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc

M = 8
SNAPSHOT = "snapshot-1"


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, then the end-of-text token 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|end|>"])
    return Tokenizer(raw, eos_token="<|end|>")


def write_corpus(folder: Path, documents: int = 8, words: int = 40) -> Path:
    """Documents d0, d1, ... of pseudo-random words, as JSON Lines; the tokenizer lies beside them."""
    random = np.random.default_rng(5)
    vocabulary = ["river", "capital", "north", "people", "coast", "trade", "élan", "sea"]
    path = folder / "corpus.jsonl"
    lines = []
    for number in range(documents):
        text = " ".join(random.choice(vocabulary, size=words + number))
        lines.append(json.dumps({"id": f"d{number}", "text": text}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    byte_tokenizer().save(folder / "tokenizer")
    return path


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """A run of 4 steps with a model of a few thousand weights."""
    values: dict[str, Any] = {
        "out": str(folder / "run"),
        "steps": 4,
        "seed": 3,
        "threads": 1,
        "device": "cpu",
        "model": {
            "vocab_size": 257,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "chunk_length": M,
            "max_positions": 64,
            "cross_attention_layers": [2],
            "encoder": {"hidden_size": 16, "num_heads": 2, "num_layers": 1},
        },
        "corpus": {"sources": [{"path": str(folder / "corpus.jsonl")}], "tokenizer": str(folder / "tokenizer")},
        "batch": {"sequences": 4, "micro": 2, "chunks": 4},
        "retrieval": {"address": "127.0.0.1:1", "database": "book"},
        "optimiser": {"learning_rate": 0.01, "warmup_steps": 1},
        "compute": {"dtype": "float32", "peak_tflops": 1.0},
        "evaluation": {"sequences": 4},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return values


class FakeRetriever:
    """Answers from the text alone: neighbours are pure functions of the query, never of the excluded document."""

    known = frozenset(f"d{number}" for number in range(100))

    def __init__(self, address: str = "", failures: Sequence[Exception] = ()) -> None:
        self.calls: list[tuple[list[str], list[list[str]], int]] = []
        self.failures = list(failures)
        self.answer_from: str | None = None
        self.snapshot = SNAPSHOT

    def describe(self, database: str, snapshot: str = "") -> retriever_pb2.DescribeReply:
        contract = {"tokenizer": byte_tokenizer().fingerprint.record, "chunk_length": M}
        return retriever_pb2.DescribeReply(
            database=database,
            snapshot=snapshot or SNAPSHOT,
            live_snapshot=snapshot or SNAPSHOT,
            contract_json=json.dumps(contract),
        )

    def search_text(
        self, database: str, texts: Sequence[str], k: int, *, snapshot: str = "", **options: Any
    ) -> SearchResult:
        exclude = [list(ids) for ids in options.get("exclude") or [[]] * len(texts)]
        self.calls.append((list(texts), exclude, k))
        if self.failures:
            raise self.failures.pop(0)
        rows = len(texts) * k
        tokens = np.zeros((rows, 2 * M), np.uint32)
        lengths = np.zeros((rows, 2), np.uint16)
        documents = []
        for row in range(rows):
            query = row // k
            random = np.random.default_rng([row % k, *database.encode(), *texts[query].encode()])
            tokens[row], lengths[row] = random.integers(1, 256, 2 * M), (M, random.integers(1, M + 1))
            other = next(f"d{n}" for n in range(100) if f"d{n}" not in exclude[query])
            documents.append(retriever_pb2.Document(external_id=self.answer_from or other))
        return SearchResult(
            snapshot=self.snapshot,
            epoch=1,
            ids=np.arange(rows).reshape(-1, k),
            scores=np.ones((len(texts), k), np.float32),
            chunks=ChunkTable(M, tokens, lengths, [], [], documents),
            row_of=np.arange(rows).reshape(-1, k),
            unknown_exclusions=len({i for ids in exclude for i in ids} - self.known),
            missing_shards=[],
            restarts=0,
            timings=common_pb2.Timings(),
        )

    def hold(self, database: str, snapshot: str) -> None:
        self.held = snapshot

    def close(self) -> None:
        pass


class Servicer(retriever_pb2_grpc.RetrieverServicer):
    """The fake retriever behind the real contract. `passage` is the text of the best chunk for (database, query)."""

    def __init__(self, passage: Callable[[str, str], str] = lambda database, query: "nothing") -> None:
        self.passage, self.snapshot = passage, SNAPSHOT
        self.unavailable = 0
        self.asked: list[tuple[str, int, str]] = []

    def Describe(self, request: Any, context: grpc.ServicerContext) -> retriever_pb2.DescribeReply:
        return FakeRetriever().describe(request.database, request.snapshot or self.snapshot)

    def Pin(self, request: Any, context: grpc.ServicerContext) -> retriever_pb2.PinReply:
        return retriever_pb2.PinReply(snapshot=request.snapshot)

    def Unpin(self, request: Any, context: grpc.ServicerContext) -> retriever_pb2.UnpinReply:
        return retriever_pb2.UnpinReply()

    def SearchText(self, request: Any, context: grpc.ServicerContext) -> retriever_pb2.SearchTextReply:
        search = request.search
        self.asked.append((search.database, search.k, search.snapshot))
        if self.unavailable:
            self.unavailable -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "a shard is gone")
        exclude = [list(exclusion.document_ids) for exclusion in search.exclusions]
        found = FakeRetriever().search_text(search.database, list(request.texts), search.k, exclude=exclude or None)
        chunks = found.chunks
        assert chunks.tokens is not None
        assert chunks.lengths is not None
        texts = [
            self.passage(search.database, text) if place == 0 else "Other things."
            for text in request.texts
            for place in range(search.k)
        ]
        reply = retriever_pb2.SearchReply(
            snapshot=search.snapshot or self.snapshot,
            queries=len(request.texts),
            k=search.k,
            ids=found.ids.astype("<i8").tobytes(),
            scores=found.scores.tobytes(),
            chunks=retriever_pb2.Chunks(
                chunk_length=M,
                token_type=common_pb2.ELEMENT_TYPE_UINT32,
                tokens=chunks.tokens.tobytes(),
                lengths=chunks.lengths.tobytes(),
                texts=texts if search.fields.text else (),
                continuation_texts=[""] * len(texts) if search.fields.text else (),
                document_index=range(len(chunks.documents)),
                documents=chunks.documents,
            ),
        )
        return retriever_pb2.SearchTextReply(result=reply)


def serve_retriever(servicer: Servicer | None = None) -> RunningServer:
    """The fake retriever on a free port; the caller stops it."""
    return start_server(
        lambda server: retriever_pb2_grpc.add_RetrieverServicer_to_server(servicer or Servicer(), server),
        host="127.0.0.1",
        port=0,
        services=["openbook_proto.v1.Retriever"],
    )
