"""One reply from those of several shards.

Axes: Q queries, K neighbours, N chunks of all parts, one after another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openbook_database.scoring import MISSING, Hits, merge
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever.chunks import gather_chunks


def merge_replies(parts: Sequence[pb.SearchReply], queries: int, k: int, fields: pb.Fields) -> pb.SearchReply:
    """The k best by score, then id, with the asked fields of each; `parts` answer the same queries, at least one."""
    hits = [_hits(part, queries, k) for part in parts]
    merged = merge(hits, k)
    found = merged.ids_QK[merged.ids_QK != MISSING]
    reply = pb.SearchReply(
        queries=queries,
        k=k,
        ids=merged.ids_QK.astype("<i8").tobytes(),
        scores=merged.scores_QK.astype("<f4").tobytes(),
        unknown_exclusions=max(part.unknown_exclusions for part in parts),
    )
    if fields.tokens or fields.text or fields.document:
        chunks = [part.chunks for part in parts]
        reply.chunks.CopyFrom(gather_chunks(chunks, _rows(hits, found), fields))
    return reply


def _hits(part: pb.SearchReply, queries: int, k: int) -> Hits:
    ids_QK = np.frombuffer(part.ids, dtype="<i8").reshape(queries, k)
    return Hits(ids_QK, np.frombuffer(part.scores, dtype="<f4").reshape(queries, k))


def _rows(hits: Sequence[Hits], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each wanted id a place among all hits that are not missing; equal ids are equal chunks."""
    ids_N = np.concatenate([part.ids_QK[part.ids_QK != MISSING] for part in hits])
    order_N = np.argsort(ids_N, kind="stable")
    return order_N[np.searchsorted(ids_N[order_N], wanted)]
