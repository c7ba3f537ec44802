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
    """The k best by score, then id, with the asked fields of each; `parts` answer the same queries, at least one. A single
    one is returned as it is."""
    if len(parts) == 1:
        return parts[0]
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
    reply.chunks.CopyFrom(gather_chunks([part.chunks for part in parts], _rows(hits, found), fields))
    return reply


def split_reply(reply: pb.SearchReply, counts: Sequence[int], fields: pb.Fields) -> list[pb.SearchReply]:
    """The replies to several calls that were asked as one, whose numbers of queries are `counts`."""
    ids_QK, scores_QK = _hits(reply, reply.queries, reply.k)
    ends = np.cumsum(counts)
    found_of_Q = np.cumsum((ids_QK != MISSING).sum(axis=1))
    parts = []
    for end, count in zip(ends.tolist(), counts, strict=True):
        mine = slice(end - count, end)
        part = pb.SearchReply(
            snapshot=reply.snapshot,
            queries=count,
            k=reply.k,
            ids=ids_QK[mine].tobytes(),
            scores=scores_QK[mine].tobytes(),
            missing_shards=reply.missing_shards,
            timings=reply.timings,
            coverage=reply.coverage if reply.HasField("coverage") else None,
        )
        if fields.tokens or fields.text or fields.document:
            first = int(found_of_Q[end - count - 1]) if end > count else 0
            rows = np.arange(first, int(found_of_Q[end - 1]))
            part.chunks.CopyFrom(gather_chunks([reply.chunks], rows, fields))
        elif reply.HasField("chunks"):
            part.chunks.CopyFrom(reply.chunks)
        parts.append(part)
    return parts


def _hits(part: pb.SearchReply, queries: int, k: int) -> Hits:
    ids_QK = np.frombuffer(part.ids, dtype="<i8").reshape(queries, k)
    return Hits(ids_QK, np.frombuffer(part.scores, dtype="<f4").reshape(queries, k))


def _rows(hits: Sequence[Hits], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each wanted id a place among all hits that are not missing; equal ids are equal chunks."""
    ids_N = np.concatenate([part.ids_QK[part.ids_QK != MISSING] for part in hits])
    order_N = np.argsort(ids_N, kind="stable")
    return order_N[np.searchsorted(ids_N[order_N], wanted)]
