"""A tokenised corpus on its chunk grid: every document begins with a chunk, its last chunk may be shorter.

Two make one: a snapshot, whose rows are its chunks, and JSON Lines, tokenised into files that are then mapped. Chunks
are numbered through all documents in the corpus's order.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import blake3
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.chunking import slices
from openbook_database.files import clear_write_errors, map_array
from openbook_database.reader import Document, DocumentReader, FieldNames, Source
from openbook_database.snapshot import Snapshot
from openbook_database.text import CONTEXT, chunk_text


@dataclass
class Documents:
    """External id, digest of the tokens, first chunk and chunks of each document; `add` one after another."""

    ids: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    @property
    def chunks(self) -> int:
        return self.firsts[-1] + self.counts[-1] if self.ids else 0

    def add(self, external_id: str, tokens: NDArray[np.unsignedinteger], chunk_length: int) -> None:
        self.firsts.append(self.chunks)
        self.counts.append(-(-len(tokens) // chunk_length))
        self.ids.append(external_id)
        self.digests.append(token_digest(tokens))

    def corpus_digest(self, chunk_length: int) -> str:
        """BLAKE3 (hexadecimal) over the grid, and id and tokens of each document in order."""
        digest = blake3.blake3(struct.pack("<Q", chunk_length))
        for external_id, tokens in zip(self.ids, self.digests, strict=True):
            encoded = external_id.encode("utf-8", "surrogatepass")
            digest.update(struct.pack("<Q", len(encoded)) + encoded + tokens)
        return digest.hexdigest()


def token_digest(tokens: NDArray[np.integer]) -> bytes:
    """BLAKE3 of one document's token ids as little-endian uint32."""
    return blake3.blake3(np.ascontiguousarray(tokens, dtype="<u4").tobytes()).digest()


class Corpus(Protocol):
    """What is asked of a corpus: its documents, and what its chunks say."""

    documents: Documents

    def texts(self, first: int, end: int) -> list[str]:
        """Text of the chunks [first, end), as `openbook_database.text` defines it."""


class SnapshotCorpus:
    """The documents of a snapshot, all of whose shards are open."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.documents = Documents()
        m = snapshot.manifest.contract.chunk_length
        for shard in snapshot.shards:
            for number in range(shard.entry.first_document, shard.entry.end_document):
                record = snapshot.documents.record(number)
                tokens_N2M, lengths_N2 = shard.tokens(np.arange(record.first_row, record.first_row + record.rows))
                tokens = tokens_N2M[:, :m].reshape(-1)[: int(lengths_N2[:, 0].astype(np.int64).sum())]
                self.documents.add(record.external_id, tokens, m)

    def texts(self, first: int, end: int) -> list[str]:
        """As `Corpus`."""
        ids_N = np.arange(first, end)
        return [text for shard in self._snapshot.shards for text in shard.text(ids_N[shard.holds(ids_N)])]


class TextCorpus:
    """JSON Lines, tokenised as a build does it. `folder` gets the tokens; memory holds what is known of documents."""

    def __init__(
        self,
        sources: Sequence[Source],
        folder: Path,
        tokenizer: Tokenizer,
        chunk_length: int,
        *,
        fields: FieldNames | None = None,
        skip_bad_lines: bool = False,
    ) -> None:
        """Documents without a token are left out. Raises InputError (file and line, or no document at all)."""
        self._tokenizer, self._m = tokenizer, chunk_length
        self.documents = Documents()
        path, self._starts = folder / "tokens.u32", [0]
        readers = _readers(sources, fields or FieldNames(), skip_bad_lines)
        with clear_write_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                for reader in readers:
                    for document in reader.read(lambda document: document):
                        self._add(document, stream)
        if not self.documents.ids:
            raise InputError(f"{', '.join(str(each.path) for each in sources)}: no document", field="corpus")
        self._tokens = map_array(path, "u4", (self._starts[-1],))

    def texts(self, first: int, end: int) -> list[str]:
        """As `Corpus`."""
        documents, m, found = self.documents, self._m, []
        number = int(np.searchsorted(documents.firsts, first, side="right")) - 1
        for chunk in range(first, end):
            while chunk >= documents.firsts[number] + documents.counts[number]:
                number += 1
            start, stop = self._starts[number], self._starts[number + 1]
            begin = start + (chunk - documents.firsts[number]) * m
            left = self._tokens[max(start, begin - CONTEXT) : begin]
            found.append(
                chunk_text(self._tokenizer, left, self._tokens[begin : min(begin + m, stop)], last=begin + m >= stop)
            )
        return found

    def _add(self, document: Document, stream: BinaryIO) -> None:
        tokens = np.concatenate([self._tokenizer.encode(piece) for _, piece in slices(document.text, self._tokenizer)])
        if len(tokens):
            stream.write(np.ascontiguousarray(tokens, dtype="<u4").tobytes())
            self.documents.add(document.external_id, tokens, self._m)
            self._starts.append(self._starts[-1] + len(tokens))


def _readers(sources: Sequence[Source], fields: FieldNames, skip_bad_lines: bool) -> Iterator[DocumentReader]:
    known: set[str] = set()
    for source in sources:
        yield DocumentReader(source, fields, skip_bad_lines=skip_bad_lines, known=known)


def documents_to_json(documents: Documents) -> bytes:
    """The documents as JSON Lines of id, digest of the tokens, and chunks."""
    rows = zip(documents.ids, documents.digests, documents.counts, strict=True)
    return b"".join(
        json.dumps([external_id, digest.hex(), count], ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        for external_id, digest, count in rows
    )


def documents_from_json(data: bytes) -> Documents:
    """As `documents_to_json` wrote them; raises ValueError for something else."""
    documents = Documents()
    for line in data.splitlines():
        external_id, digest, count = json.loads(line.decode("utf-8", "surrogatepass"))
        documents.firsts.append(documents.chunks)
        documents.counts.append(int(count))
        documents.ids.append(external_id)
        documents.digests.append(bytes.fromhex(digest))
    return documents
