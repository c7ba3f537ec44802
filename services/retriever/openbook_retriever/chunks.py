"""Chunks on the wire: made from a shard's files, and put together from several shards' answers.

Axes: N chunks, M tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openbook_core.fingerprint import canonical_json
from openbook_core.vectors import dtype_of, element_type_of
from openbook_database.documents import DocumentRecord
from openbook_database.shard import Shard
from openbook_proto.v1 import retriever_pb2 as pb


def encode_chunks(shard: Shard, ids: NDArray[np.int64], fields: pb.Fields) -> pb.Chunks:
    """The asked fields of the shard's chunks `ids` [n], in that order."""
    message = pb.Chunks(chunk_length=shard.chunk_length)
    if fields.tokens:
        tokens_N2M, lengths_N2 = shard.tokens(ids)
        message.token_type = element_type_of(tokens_N2M.dtype)
        message.tokens = np.ascontiguousarray(tokens_N2M, dtype=tokens_N2M.dtype.newbyteorder("<")).tobytes()
        message.lengths = np.ascontiguousarray(lengths_N2, dtype="<u2").tobytes()
    if fields.text:
        message.texts.extend(shard.text(ids))
        message.continuation_texts.extend(shard.continuation_text(ids))
    if fields.document:
        numbers, places = np.unique(shard.document_numbers(ids), return_inverse=True)
        message.document_index.extend(places.reshape(-1).tolist())
        message.documents.extend(_document(shard.documents.record(int(number))) for number in numbers)
    return message


def encode_found(shards: Sequence[Shard], ids: NDArray[np.int64], fields: pb.Fields) -> pb.Chunks:
    """As `encode_chunks`, for chunks of several shards, each id in one of them."""
    if len(shards) == 1:
        return encode_chunks(shards[0], ids, fields)
    places = [np.flatnonzero(shard.holds(ids)) for shard in shards]
    parts = [encode_chunks(shard, ids[some], fields) for shard, some in zip(shards, places, strict=True)]
    rows = np.empty(len(ids), dtype=np.int64)
    rows[np.concatenate(places)] = np.arange(len(ids))
    return gather_chunks(parts, rows, fields)


def gather_chunks(parts: Sequence[pb.Chunks], rows: NDArray[np.int64], fields: pb.Fields) -> pb.Chunks:
    """One message of the chunks `rows` [n], which count through all `parts` one after another.

    It is the one that `encode_chunks` would make of these chunks: documents come in the order of their numbers.
    """
    message = pb.Chunks(chunk_length=parts[0].chunk_length)
    if fields.tokens:
        message.token_type = parts[0].token_type
        width = 2 * message.chunk_length
        dtype = dtype_of(message.token_type)
        tokens_N2M = np.concatenate([np.frombuffer(part.tokens, dtype=dtype).reshape(-1, width) for part in parts])
        lengths_N2 = np.concatenate([np.frombuffer(part.lengths, dtype="<u2").reshape(-1, 2) for part in parts])
        message.tokens = tokens_N2M[rows].tobytes()
        message.lengths = lengths_N2[rows].tobytes()
    if fields.text:
        texts = [text for part in parts for text in part.texts]
        continuations = [text for part in parts for text in part.continuation_texts]
        message.texts.extend(texts[row] for row in rows)
        message.continuation_texts.extend(continuations[row] for row in rows)
    if fields.document:
        records = {document.number: document for part in parts for document in part.documents}
        of_chunk = [part.documents[place].number for part in parts for place in part.document_index]
        wanted = [of_chunk[row] for row in rows]
        places = {number: place for place, number in enumerate(sorted(set(wanted)))}
        message.documents.extend(records[number] for number in places)
        message.document_index.extend(places[number] for number in wanted)
    return message


def _document(record: DocumentRecord) -> pb.Document:
    return pb.Document(
        number=record.number,
        external_id=record.external_id,
        title=record.title or "",
        uri=record.uri or "",
        licence=record.licence or "",
        metadata_json=canonical_json(record.metadata),
    )
