"""Passages as the retriever finds them, and what of passages is put before the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openbook_core.clients import RetrieverClient

# More than the 256 word pieces that the encoder reads of a query.
_QUERY_CHARACTERS = 8192


@dataclass(frozen=True)
class Pin:
    """The one snapshot that a request reads from."""

    database: str
    snapshot: str
    epoch: int


@dataclass(frozen=True)
class Passage:
    """One retrieved chunk and what is known of its document."""

    chunk_id: int
    document_id: str
    title: str
    uri: str
    licence: str
    score: float
    text: str
    continuation: str


@dataclass(frozen=True)
class Extract:
    """Text for the prompt, the chunks that it is from (continuations included), and the ranks of their passages."""

    text: str
    chunk_ids: tuple[int, ...]
    ranks: tuple[int, ...]


def find_passages(
    client: RetrieverClient,
    database: str,
    questions: Sequence[str],
    k: int,
    *,
    snapshot: str = "",
    exclude: Sequence[Sequence[str]] | None = None,
    timeout_s: float = 30.0,
) -> tuple[Pin, list[list[Passage]]]:
    """The k best passages of each question, best first, and the snapshot that all are from (the live one if unnamed).

    `exclude` names for each question the external ids of documents that may not be found. Only the beginning of a long
    question is sent; the encoder would read no more of it. Errors are the client's.
    """
    queries = [question.strip()[:_QUERY_CHARACTERS] for question in questions]
    found = client.search_text(
        database, queries, k, snapshot=snapshot, exclude=exclude, text=True, documents=True, timeout_s=timeout_s
    )
    passages: list[list[Passage]] = []
    for ids, scores, rows in zip(found.ids, found.scores, found.row_of, strict=True):
        passages.append([])
        for chunk_id, score, row in zip(ids.tolist(), scores.tolist(), rows.tolist(), strict=True):
            if chunk_id < 0:
                continue
            document = found.chunks.documents[row]
            passages[-1].append(
                Passage(
                    chunk_id=chunk_id,
                    document_id=document.external_id,
                    title=document.title,
                    uri=document.uri,
                    licence=document.licence,
                    score=score,
                    text=found.chunks.texts[row],
                    continuation=found.chunks.continuation_texts[row],
                )
            )
    return Pin(database, found.snapshot, found.epoch), passages
