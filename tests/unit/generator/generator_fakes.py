"""A tiny tokenizer and RETRO model, and a retriever that speaks the real protocol over a real socket."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from openbook_core.clients import RetrieverClient
from openbook_core.errors import OpenbookError, PreconditionError
from openbook_core.fingerprint import canonical_json
from openbook_core.rpc.server import RunningServer, start_server
from openbook_core.tokenizer import Tokenizer
from openbook_generator.config import GeneratorConfig
from openbook_generator.retrieval import Retriever
from openbook_generator.service import Generator
from openbook_model import EncoderConfig, RetroConfig, RetroModel, initialise
from openbook_proto.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc

M = 8  # chunk length
VOCABULARY = 259
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(chat_template: str | None = TEMPLATE) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    markers = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in markers])
    return Tokenizer(raw, chat_template=chat_template, eos_token="<|im_end|>")


def tiny_model(gate: float = 1.0, seed: int = 0) -> RetroModel:
    config = RetroConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        max_positions=2048,
        chunk_length=M,
        num_neighbors=2,
        cross_attention_layers=(2, 3),
        gate=gate,
        encoder=EncoderConfig(hidden_size=16, num_heads=2),
    )
    model = RetroModel(config)
    initialise(model, seed)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    return model.eval()


def neighbor_tokens(snapshot: str, text: str, rank: int) -> list[int]:
    """What the fake answers with: 2m letters that depend on the snapshot, the query and the rank."""
    digest = hashlib.sha256(f"{snapshot}|{rank}|{text}".encode()).digest()
    return [66 + byte % 20 for byte in digest[: 2 * M - rank]]


class FakeRetriever(retriever_pb2_grpc.RetrieverServicer):
    """Answers SearchText and Describe; `live` may be changed between calls, `open` blocks searches of tokens.

    `refusal` is raised instead of an answer, by both.
    """

    def __init__(self, passages: Sequence[tuple[str, str, str]] = ()) -> None:
        self.live, self.epoch = "snapshot-a", 1
        self.loaded = {"snapshot-a", "snapshot-b"}
        self.passages = list(passages) or [("Alpha", "alpha is the first", " letter"), ("Beta", "beta is second", "")]
        self.calls: list[tuple[str, list[str], bool]] = []
        self.open = threading.Event()
        self.open.set()
        self.on_tokens = lambda: None
        self.refusal: OpenbookError | None = None
        self.pin_refusal: OpenbookError | None = None
        self.pins: list[str] = []
        self.contract: dict[str, Any] = {"tokenizer": byte_tokenizer().fingerprint.record, "chunk_length": M}

    def start(self) -> RunningServer:
        return start_server(
            lambda server: retriever_pb2_grpc.add_RetrieverServicer_to_server(self, server),
            host="127.0.0.1",
            port=0,
            services=["openbook_proto.v1.Retriever"],
        )

    def Describe(
        self, request: retriever_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> retriever_pb2.DescribeReply:
        if self.refusal is not None:
            raise self.refusal
        return retriever_pb2.DescribeReply(
            database=request.database,
            live_snapshot=self.live,
            epoch=self.epoch,
            contract_json=canonical_json(self.contract),
        )

    def Pin(self, request: retriever_pb2.PinRequest, context: grpc.ServicerContext) -> retriever_pb2.PinReply:
        if self.pin_refusal is not None:
            raise self.pin_refusal
        if request.snapshot not in self.pins:
            self.pins.append(request.snapshot)
        return retriever_pb2.PinReply(snapshot=request.snapshot, epoch=self.epoch)

    def Unpin(self, request: retriever_pb2.UnpinRequest, context: grpc.ServicerContext) -> retriever_pb2.UnpinReply:
        self.pins.remove(request.snapshot)
        return retriever_pb2.UnpinReply()

    def SearchText(
        self, request: retriever_pb2.SearchTextRequest, context: grpc.ServicerContext
    ) -> retriever_pb2.SearchTextReply:
        search, texts = request.search, list(request.texts)
        snapshot = search.snapshot or self.live
        self.calls.append((search.snapshot, texts, search.fields.tokens))
        if search.fields.tokens:
            self.open.wait(20)
        if self.refusal is not None:
            raise self.refusal
        if snapshot not in self.loaded:
            raise PreconditionError(f"snapshot {snapshot!r} is not loaded", field="snapshot")
        found = min(search.k, len(self.passages)) if not search.fields.tokens else search.k
        row_ids = np.arange(search.k)
        ids = np.tile(np.where(row_ids < found, row_ids + 100, -1), (len(texts), 1)).astype("<i8")
        chunks = retriever_pb2.Chunks(chunk_length=M, token_type=common_pb2.ELEMENT_TYPE_UINT16)
        if search.fields.tokens:
            tokens = np.zeros((len(texts) * search.k, 2 * M), "<u2")
            lengths = np.zeros((len(tokens), 2), "<u2")
            for row, (text, rank) in enumerate((text, rank) for text in texts for rank in range(search.k)):
                row_tokens = neighbor_tokens(snapshot, text, rank)
                tokens[row, : len(row_tokens)] = row_tokens
                lengths[row] = M, len(row_tokens) - M
            chunks.tokens, chunks.lengths = tokens.tobytes(), lengths.tobytes()
            self.on_tokens()
        else:
            for number, (title, text, continuation) in enumerate(self.passages[:found]):
                chunks.texts.append(text)
                chunks.continuation_texts.append(continuation)
                chunks.document_index.append(number)
                chunks.documents.append(
                    retriever_pb2.Document(external_id=f"doc-{number}", title=title, uri=f"u{number}", licence="CC0")
                )
        reply = retriever_pb2.SearchReply(
            snapshot=snapshot,
            epoch=self.epoch,
            queries=len(texts),
            k=search.k,
            ids=ids.tobytes(),
            scores=np.where(ids >= 0, 0.5, 0).astype("<f4").tobytes(),
            chunks=chunks,
        )
        return retriever_pb2.SearchTextReply(result=reply)


def make_generator(address: str, gate: float = 1.0, **settings: object) -> Generator:
    defaults: dict[str, object] = {"model": "tiny", "database": "wiki", "k": 2, "slots": 4, "max_context": 512}
    config = GeneratorConfig.parse({**defaults, "retriever": address, **settings})
    return Generator(config, tiny_model(gate), byte_tokenizer(), Retriever(RetrieverClient(address), 10.0))


@torch.no_grad()
def reference(model: RetroModel, prompt: list[int], count: int, snapshot: str | None) -> list[int]:
    """Greedy tokens by a full forward pass per token, with the neighbours of each complete chunk."""
    tokenizer, tokens = byte_tokenizer(), list(prompt)
    phase = (len(prompt) - 1) % M + 1
    stops = {tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|endoftext|>")}
    for _ in range(count):
        neighbors, lengths = None, None
        if snapshot is not None:
            ends = list(range(phase, len(tokens) + 1, M))
            starts = [0, *ends[:-1]]
            texts = [tokenizer.decode(tokens[a:b], skip_special=True) for a, b in zip(starts, ends, strict=True)]
            neighbors = torch.zeros(1, len(texts), 2, 2 * M, dtype=torch.long)
            lengths = torch.zeros(1, len(texts), 2, dtype=torch.long)
            for place, text in enumerate(texts):
                for rank in range(2 if text.strip() else 0):
                    row = neighbor_tokens(snapshot, text, rank)
                    neighbors[0, place, rank, : len(row)] = torch.tensor(row)
                    lengths[0, place, rank] = len(row)
        logits = model(torch.tensor([tokens]), neighbors, lengths, first_chunk=phase)
        token = int(logits[0, -1].argmax())
        if token in stops:
            break
        tokens.append(token)
    return tokens[len(prompt) :]
