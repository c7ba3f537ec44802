"""Stage "chunk": sources to token rows and document records, in blocks of whole documents, in the sources' order.

A block is two files: documents/N.arrow, then chunks/N.arrow, whose presence says that the block is done. The latter
carries the reader's position after it, from which a later run goes on. Where documents are cleaned there is a third one,
removed/N.jsonl, written first: what was left out up to that position. At the end these become the report.

Documents that are as they were in the base are noted with their number there. Their token rows are left to the base where
it has their vectors too and nothing is cleaned by tokens: they need not be tokenised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.build.base import Base
from openbook_database.build.progress import Stage
from openbook_database.build.settings import BuildSettings
from openbook_database.build.workspace import Workspace
from openbook_database.chunking import Chunks, chunk_document
from openbook_database.cleaning.cleaner import Cleaner
from openbook_database.cleaning.exact import DIGEST_BYTES as TEXT_DIGEST_BYTES
from openbook_database.cleaning.kept import BlockTokens
from openbook_database.documents import DIGEST_BYTES, METADATA_PREFIX, content_digest
from openbook_database.files import write_atomically, write_bytes_atomically
from openbook_database.reader import BadLineError, Document, DocumentReader, Source

_POSITION = b"position"
_DIGEST = "text_digest"
_NOTHING = Chunks(np.empty(0, np.uint32), [])
WEIGHT = "weight"


def token_dtype(vocab_size: int) -> str:
    """The smallest type that holds every token id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class SourceCounts:
    """What came of one source."""

    documents: int = 0
    chunks: int = 0
    tokens: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    removed: Mapping[str, int] = field(default_factory=dict)
    licences: Sequence[str] = ()

    def plus(self, document: Document, chunks: int, tokens: int) -> SourceCounts:
        """With one more document."""
        licences = {*self.licences, *([] if document.licence is None else [document.licence])}
        return replace(
            self,
            documents=self.documents + 1,
            chunks=self.chunks + chunks,
            tokens=self.tokens + tokens,
            licences=sorted(licences),
        )

    def without(self, kind: str) -> SourceCounts:
        """With one more document that was cleaned away."""
        return replace(self, removed={**self.removed, kind: self.removed.get(kind, 0) + 1})

    def reached(self, reader: DocumentReader) -> SourceCounts:
        """With the bad rows that `reader` met so far, and the documents that the source's weight left out."""
        weighed = {**self.removed, WEIGHT: reader.left_out} if reader.left_out else self.removed
        return replace(self, skipped=dict(reader.skipped), removed=weighed)


@dataclass(frozen=True)
class Position:
    """Where the reader stands after a block: rows taken of source number `source`, and counts of all sources.

    `evaluation`, at the end: how many evaluation texts were looked for, and how many were too short for it.
    """

    source: int
    line: int
    counts: tuple[SourceCounts, ...]
    done: bool = False
    evaluation: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Position:
        record = json.loads(text)
        return cls(**{**record, "counts": tuple(SourceCounts(**count) for count in record["counts"])})


@dataclass(frozen=True)
class _Taken:
    """A document with its content digest; `base`: its number in the base if it is as it was there, else -1.

    `chunks` is empty where its `rows` are left to the base.
    """

    document: Document
    content: bytes
    base: int
    chunks: Chunks
    rows: int
    tokens: int


@dataclass(frozen=True)
class _Row:
    taken: _Taken
    digest: bytes | None
    position: Position


@dataclass(frozen=True)
class _Removed:
    record: dict[str, Any]
    position: Position


def run_chunk_stage(
    sources: Sequence[Source],
    source_bytes: Sequence[int],
    tokenizer: Tokenizer,
    settings: BuildSettings,
    work: Workspace,
    stage: Stage,
    base: Base | None = None,
) -> Position:
    """Do what is left of the stage; the position at its end holds the counts of all sources.

    `source_bytes`: the size of each source, from which the time left is estimated.
    """
    position = Position(0, 0, tuple(SourceCounts() for _ in sources))
    known: set[str] = set()
    cleaner = Cleaner(settings.cleaning, tokenizer, partial(_read_tokens, work, settings.chunk_length))
    block = 0
    while (path := block_path(work.chunks, block)).exists():
        position = Position.from_json(read_table(path).schema.metadata[_POSITION])
        documents = read_table(block_path(work.documents, block))
        ids = documents.column("external_id").to_pylist()
        known.update(ids, (record["id"] for record in _read_removed(work, block)))
        if not position.done:
            cleaner.restore(ids, documents.column(_DIGEST).to_pylist())
        stage.advance(int(documents.column("rows").to_numpy().sum()), reused=True)
        block += 1
    if position.done:
        _write_report(work, settings)
        return position
    dtype = token_dtype(tokenizer.vocab_size)
    reading = _Reading(sources, source_bytes, tokenizer, settings, cleaner, position, known, base)
    pending: list[_Row] = []
    removed: list[_Removed] = []
    rows = 0
    for row in reading.rows():
        if rows + len(removed) >= settings.chunk_block:
            _write_removed(work, block, removed, settings)
            _write_block(work, block, pending, position, settings, dtype)
            cleaner.block_written(len(pending))
            stage.advance(rows, share=reading.share)
            block, rows, pending, removed = block + 1, 0, [], []
        position = row.position
        if isinstance(row, _Removed):
            removed.append(row)
        else:
            pending.append(row)
            rows += row.taken.rows
    end = Position(len(sources), 0, tuple(reading.counts), done=True, evaluation=cleaner.evaluation_texts)
    if not any(counts.documents for counts in end.counts):
        raise _no_document(sources, end)
    _write_removed(work, block, removed, settings)
    _write_block(work, block, pending, end, settings, dtype)
    stage.advance(rows, share=1.0)
    _write_report(work, settings)
    return end


def _no_document(sources: Sequence[Source], end: Position) -> InputError:
    skipped = sum(sum(counts.skipped.values()) for counts in end.counts)
    removed = sum(sum(counts.removed.values()) for counts in end.counts)
    notes = [f"{skipped} bad lines were skipped"] if skipped else []
    notes += [f"{removed} documents were left out"] if removed else []
    return InputError(
        f"{', '.join(str(source.path) for source in sources)}: no document"
        + (f" ({', '.join(notes)})" if notes else ""),
        field="input",
    )


class _Reading:
    """Reads all sources from a position on; `counts` is what came of each so far, `share` what has been read of all, by
    their bytes, 0 to 1."""

    def __init__(
        self,
        sources: Sequence[Source],
        source_bytes: Sequence[int],
        tokenizer: Tokenizer,
        settings: BuildSettings,
        cleaner: Cleaner,
        start: Position,
        known: set[str],
        base: Base | None,
    ) -> None:
        self.counts, self.share = list(start.counts), 0.0
        self._source_bytes = source_bytes
        self._sources, self._tokenizer, self._settings, self._cleaner = sources, tokenizer, settings, cleaner
        self._start, self._known, self._base = start, known, base
        by_tokens = settings.cleaning.dedup == "near" or settings.cleaning.evaluation
        self._left_to_base = base is not None and base.has_vectors and not by_tokens

    def rows(self) -> Iterator[_Row | _Removed]:
        """Documents in order, cut into chunks, and those that are cleaned away, each with the position after it."""
        limit = self._settings.limit_documents
        for number in range(self._start.source, len(self._sources)):
            source = self._sources[number]
            reader = DocumentReader(
                source, self._settings.fields, skip_bad_lines=self._settings.skip_bad_lines, known=self._known
            )
            reader.skipped.update(self.counts[number].skipped)
            reader.left_out = self.counts[number].removed.get(WEIGHT, 0)
            if number == self._start.source:
                reader.skip_to(self._start.line)
            for taken in reader.read(self._take):
                document = taken.document
                read = sum(self._source_bytes[:number]) + reader.share * self._source_bytes[number]
                self.share = read / sum(self._source_bytes)
                if limit is not None:
                    self.share = max(self.share, sum(count.documents for count in self.counts) / limit)
                if limit is not None and sum(count.documents for count in self.counts) >= limit:
                    return
                digest = self._cleaner.digest(document.text)
                reason = self._cleaner.take(document.external_id, digest, taken.chunks.tokens)
                counts = self.counts[number].reached(reader)
                if reason is None:
                    self.counts[number] = counts.plus(document, taken.rows, taken.tokens)
                    yield _Row(taken, digest, Position(number, reader.line, tuple(self.counts)))
                else:
                    self.counts[number] = counts.without(reason["kind"])
                    record = {"id": document.external_id, "source": source.path.name, **reason}
                    yield _Removed(record, Position(number, reader.line, tuple(self.counts)))
            self.counts[number] = self.counts[number].reached(reader)

    def _take(self, document: Document) -> _Taken:
        content, number = content_digest(document.title, document.text), -1
        if self._base is not None:
            number = self._base.find(document.external_id, content)
            if number >= 0 and self._left_to_base:
                return _Taken(document, content, number, _NOTHING, *self._base.size(number))
        chunks = chunk_document(document.text, self._tokenizer, self._settings.chunk_length)
        if not len(chunks.tokens):
            raise BadLineError("no tokens", f"document {document.external_id!r} has no tokens")
        return _Taken(document, content, number, chunks, len(chunks.headings), len(chunks.tokens))


def block_path(folder: Path, block: int) -> Path:
    """File of a block of this stage."""
    return folder / f"{block:08d}.arrow"


def read_table(path: Path) -> pa.Table:
    """A block's table, mapped."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _write_block(
    work: Workspace, block: int, pending: list[_Row], position: Position, settings: BuildSettings, dtype: str
) -> None:
    rows = [row.taken for row in pending]
    documents = {
        "external_id": [row.document.external_id for row in rows],
        "title": [row.document.title for row in rows],
        "uri": [row.document.uri for row in rows],
        "licence": [row.document.licence for row in rows],
        **{
            METADATA_PREFIX + name: [row.document.metadata[place] for row in rows]
            for place, name in enumerate(settings.fields.metadata)
        },
    }
    columns = {name: pa.array(values, pa.large_string()) for name, values in documents.items()}
    columns[_DIGEST] = pa.array([row.digest for row in pending], pa.binary(TEXT_DIGEST_BYTES))
    columns["content"] = pa.array([row.content for row in rows], pa.binary(DIGEST_BYTES))
    columns["rows"] = pa.array([row.rows for row in rows], pa.int64())
    columns["base"] = pa.array([row.base for row in rows], pa.int64())
    columns["held"] = pa.array([len(row.chunks.headings) for row in rows], pa.int64())
    write_table(block_path(work.documents, block), pa.table(columns))

    m = settings.chunk_length
    padded, lengths = [np.empty((0, m), dtype=dtype)], [np.empty(0, dtype=np.uint16)]
    for row in (row for row in rows if row.chunks.headings):
        tokens = row.chunks.tokens
        table_NM = np.zeros((len(row.chunks.headings), m), dtype=dtype)
        table_NM.reshape(-1)[: len(tokens)] = tokens
        padded.append(table_NM)
        used = np.full(len(table_NM), m, dtype=np.uint16)
        used[-1] = len(tokens) - m * (len(table_NM) - 1)
        lengths.append(used)
    tokens_NM = np.concatenate(padded)
    headings = [heading for row in rows for heading in row.chunks.headings]
    table = pa.table(
        {
            "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens_NM.reshape(-1)), m),
            "lengths": pa.array(np.concatenate(lengths)),
            "headings": pa.array(headings, pa.large_string()),
        }
    )
    write_table(block_path(work.chunks, block), table.replace_schema_metadata({_POSITION: position.to_json()}))


def _read_tokens(work: Workspace, chunk_length: int, block: int) -> BlockTokens:
    table = read_table(block_path(work.chunks, block)).combine_chunks()
    rows = read_table(block_path(work.documents, block)).column("rows").to_numpy()
    tokens = table.column("tokens").chunk(0).values.to_numpy().reshape(-1, chunk_length)
    return rows, tokens, table.column("lengths").chunk(0).to_numpy()


def _removed_path(work: Workspace, block: int) -> Path:
    return work.removed / f"{block:08d}.jsonl"


def _write_removed(work: Workspace, block: int, removed: Sequence[_Removed], settings: BuildSettings) -> None:
    if settings.cleaning.active:
        lines = "".join(json.dumps(line.record, ensure_ascii=False) + "\n" for line in removed)
        write_bytes_atomically(_removed_path(work, block), lines.encode())


def _read_removed(work: Workspace, block: int) -> Iterator[dict[str, Any]]:
    path = _removed_path(work, block)
    if path.exists():
        yield from (json.loads(line) for line in path.read_bytes().split(b"\n") if line)


def _write_report(work: Workspace, settings: BuildSettings) -> None:
    """OUT.report.jsonl: a line for each document that was cleaned away."""
    if not settings.cleaning.active:
        return

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            for path in sorted(work.removed.glob("*.jsonl")):
                stream.write(path.read_bytes())

    write_atomically(work.report, write)


def write_table(path: Path, table: pa.Table) -> None:
    """A block's table, whole or not at all."""

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    write_atomically(path, write)
