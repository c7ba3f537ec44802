"""A small real database behind the retriever's contract, by brute force, and models with weights set by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from numpy.typing import NDArray
from trainer_fakes import SNAPSHOT, FakeRetriever, M, byte_tokenizer

from openbook_core.rpc.server import RunningServer, start_server
from openbook_model import RetroConfig, RetroModel, save
from openbook_proto.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc

VOCABULARY = 257


@dataclass(frozen=True)
class Row:
    """A chunk with its continuation: padded tokens [2M], used lengths [2], and the chunk's text."""

    external_id: str
    tokens: NDArray[np.uint32]
    lengths: tuple[int, int]
    text: str


class Book:
    """Chunks of documents (id -> ASCII text), ranked by how many characters they share with a query, then by id."""

    def __init__(self, documents: Mapping[str, str]) -> None:
        self.documents = dict(documents)
        self.rows: list[Row] = []
        for external_id, text in self.documents.items():
            tokens = byte_tokenizer().encode(text).astype(np.uint32)
            for start in range(0, len(tokens), M):
                used = tokens[start : start + 2 * M]
                padded = np.zeros(2 * M, np.uint32)
                padded[: len(used)] = used
                lengths = (min(M, len(used)), max(0, len(used) - M))
                self.rows.append(Row(external_id, padded, lengths, text[start : start + M]))

    def search(self, query: str, k: int, exclude: frozenset[str] = frozenset()) -> list[int]:
        """Ids of the k best chunks, fewer where there are no more."""
        allowed = [place for place, row in enumerate(self.rows) if row.external_id not in exclude]
        return sorted(allowed, key=lambda place: -len(set(query) & set(self.rows[place].text)))[:k]


class BookServicer(retriever_pb2_grpc.RetrieverServicer):
    """`largest`: the most neighbours that were asked for."""

    def __init__(self, book: Book) -> None:
        self.book, self.largest = book, 0

    def Describe(self, request: Any, context: grpc.ServicerContext) -> retriever_pb2.DescribeReply:
        return FakeRetriever().describe(request.database, request.snapshot)

    def SearchText(self, request: Any, context: grpc.ServicerContext) -> retriever_pb2.SearchTextReply:
        search = request.search
        self.largest = max(self.largest, search.k)
        excluded = [frozenset(each.document_ids) for each in search.exclusions] or [frozenset()] * len(request.texts)
        found = [self.book.search(text, search.k, ids) for text, ids in zip(request.texts, excluded, strict=True)]
        ids = np.full((len(found), search.k), -1, "<i8")
        for row, places in zip(ids, found, strict=True):
            row[: len(places)] = places
        reply = retriever_pb2.SearchReply(
            snapshot=search.snapshot or SNAPSHOT,
            queries=len(found),
            k=search.k,
            ids=ids.tobytes(),
            scores=np.zeros(ids.shape, "<f4").tobytes(),
            chunks=self._chunks([place for places in found for place in places], search.fields),
            unknown_exclusions=sum(name not in self.book.documents for name in frozenset().union(*excluded)),
        )
        return retriever_pb2.SearchTextReply(result=reply)

    def GetChunks(self, request: Any, context: grpc.ServicerContext) -> retriever_pb2.GetChunksReply:
        assert request.snapshot
        assert request.ids, "the service refuses a request for no chunk"
        places = np.frombuffer(request.ids, "<i8").tolist()
        return retriever_pb2.GetChunksReply(snapshot=request.snapshot, chunks=self._chunks(places, request.fields))

    def _chunks(self, places: list[int], fields: Any) -> retriever_pb2.Chunks:
        rows = [self.book.rows[place] for place in places]
        return retriever_pb2.Chunks(
            chunk_length=M,
            token_type=common_pb2.ELEMENT_TYPE_UINT32,
            tokens=b"".join(row.tokens.tobytes() for row in rows) if fields.tokens else b"",
            lengths=np.array([row.lengths for row in rows], "<u2").tobytes() if fields.tokens else b"",
            document_index=range(len(rows)) if fields.document else (),
            documents=[retriever_pb2.Document(external_id=row.external_id) for row in rows] if fields.document else (),
        )


def serve_book(servicer: BookServicer) -> RunningServer:
    """On a free port; the caller stops it."""
    return start_server(
        lambda server: retriever_pb2_grpc.add_RetrieverServicer_to_server(servicer, server),
        host="127.0.0.1",
        port=0,
        services=["openbook_proto.v1.Retriever"],
    )


def save_reader(folder: Path, said: str = "") -> None:
    """A model whose logits are about 20 times the share of each token in its neighbours; OFF every token is as likely.

    With `said` each neighbour counts as these characters, whatever it is.
    """
    width = 2 * VOCABULARY  # a token's own half, which the head ignores, and the half that cross attention fills
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "num_layers": 1,
        "num_heads": 1,
        "ffn_hidden_size": 1,
        "chunk_length": M,
        "max_positions": 64,
        "norm": "rmsnorm",
        "tied_embeddings": False,
        "cross_attention_layers": (1,),
        "encoder": {"hidden_size": width, "num_heads": 1, "num_layers": 1, "ffn_hidden_size": 1, "final_norm": False},
    }
    model = RetroModel(RetroConfig.parse(settings))
    seen = torch.eye(VOCABULARY)
    if said:
        seen = seen[torch.from_numpy(byte_tokenizer().encode(said).astype(np.int64))].mean(0).repeat(VOCABULARY, 1)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        parameters["embedding.weight"][:, :VOCABULARY] = torch.eye(VOCABULARY)
        parameters["blocks.0.cross.key_value.weight"][width : width + VOCABULARY, :VOCABULARY] = seen.T
        parameters["blocks.0.cross.output.weight"][VOCABULARY:, :VOCABULARY] = torch.eye(VOCABULARY)
        parameters["head.weight"][:, VOCABULARY:] = torch.eye(VOCABULARY)
    byte_tokenizer().save(folder.with_name("tokenizer"))
    save(model, folder, folder.with_name("tokenizer"))
