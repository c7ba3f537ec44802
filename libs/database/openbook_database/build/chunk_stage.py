"""Stage "chunk": sources to token rows and document records, in blocks of whole documents, in the sources' order.

A block is two files: documents/N.arrow, then chunks/N.arrow, whose presence says that the block is done. The latter
carries the reader's position after it, from which a later run goes on. Documents that are as they were in the base are
noted with their number there; their token rows are the base's, where it also has their vectors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.build.base import Base
from openbook_database.build.progress import Stage
from openbook_database.build.settings import BuildSettings
from openbook_database.build.workspace import Workspace
from openbook_database.chunking import Chunks, chunk_document
from openbook_database.documents import DIGEST_BYTES, METADATA_PREFIX, content_digest
from openbook_database.files import write_atomically
from openbook_database.reader import BadLineError, Document, DocumentReader, Source

_POSITION = b"position"


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
    licences: Sequence[str] = ()

    def plus(self, document: Document, chunks: int, tokens: int, skipped: Mapping[str, int]) -> SourceCounts:
        """With one more document, and `skipped` lines so far."""
        licences = {*self.licences, *([] if document.licence is None else [document.licence])}
        return SourceCounts(
            self.documents + 1, self.chunks + chunks, self.tokens + tokens, dict(skipped), sorted(licences)
        )


@dataclass(frozen=True)
class Position:
    """Where the reader stands after a block: lines taken of source number `source`, and counts of all sources."""

    source: int
    line: int
    counts: tuple[SourceCounts, ...]
    done: bool = False

    def to_json(self) -> str:
        counts = [asdict(count) for count in self.counts]
        return json.dumps({"source": self.source, "line": self.line, "counts": counts, "done": self.done})

    @classmethod
    def from_json(cls, text: str | bytes) -> Position:
        record = json.loads(text)
        counts = tuple(SourceCounts(**count) for count in record["counts"])
        return cls(record["source"], record["line"], counts, record["done"])


@dataclass(frozen=True)
class _Taken:
    """A document with its content digest; `base`: its number in the base if it is as it was there, else -1.

    `chunks` is empty where its `rows` are taken from the base.
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
    position: Position


def run_chunk_stage(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    settings: BuildSettings,
    work: Workspace,
    stage: Stage,
    base: Base | None = None,
) -> Position:
    """Do what is left of the stage; the position at its end holds the counts of all sources."""
    position = Position(0, 0, tuple(SourceCounts() for _ in sources))
    known: set[str] = set()
    block = 0
    while (path := block_path(work.chunks, block)).exists():
        position = Position.from_json(read_table(path).schema.metadata[_POSITION])
        documents = read_table(block_path(work.documents, block))
        known.update(documents.column("external_id").to_pylist())
        stage.advance(int(documents.column("rows").to_numpy().sum()), reused=True)
        block += 1
    if position.done:
        return position
    dtype = token_dtype(tokenizer.vocab_size)
    reading = _Reading(sources, tokenizer, settings, position, known, base)
    pending: list[_Row] = []
    rows = 0
    for row in reading.rows():
        if rows >= settings.chunk_block:
            _write_block(work, block, pending, pending[-1].position, settings, dtype)
            stage.advance(rows)
            block, rows, pending = block + 1, 0, []
        pending.append(row)
        rows += row.taken.rows
    end = Position(len(sources), 0, tuple(reading.counts), done=True)
    if not block and not pending:
        skipped = sum(sum(counts.skipped.values()) for counts in end.counts)
        raise InputError(
            f"{', '.join(str(source.path) for source in sources)}: no document"
            + (f" ({skipped} bad lines were skipped)" if skipped else ""),
            field="input",
        )
    _write_block(work, block, pending, end, settings, dtype)
    stage.advance(rows)
    return end


class _Reading:
    """Reads all sources from a position on; `counts` is what came of each so far."""

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        settings: BuildSettings,
        start: Position,
        known: set[str],
        base: Base | None,
    ) -> None:
        self.counts = list(start.counts)
        self._sources, self._tokenizer, self._settings = sources, tokenizer, settings
        self._start, self._known, self._base = start, known, base

    def rows(self) -> Iterator[_Row]:
        """Documents in order, cut into chunks, each with the position after it."""
        limit = self._settings.limit_documents
        for number in range(self._start.source, len(self._sources)):
            reader = DocumentReader(
                self._sources[number],
                self._settings.fields,
                skip_bad_lines=self._settings.skip_bad_lines,
                known=self._known,
            )
            reader.skipped.update(self.counts[number].skipped)
            if number == self._start.source:
                reader.skip_to(self._start.line)
            for taken in reader.read(self._take):
                if limit is not None and sum(count.documents for count in self.counts) >= limit:
                    return
                self.counts[number] = self.counts[number].plus(taken.document, taken.rows, taken.tokens, reader.skipped)
                yield _Row(taken, Position(number, reader.line, tuple(self.counts)))
            self.counts[number] = replace(self.counts[number], skipped=dict(reader.skipped))

    def _take(self, document: Document) -> _Taken:
        content, base, number = content_digest(document.title, document.text), self._base, -1
        if base is not None:
            number = base.find(document.external_id, content)
            if number >= 0 and base.has_vectors:
                nothing = Chunks(np.empty(0, np.uint32), [])
                return _Taken(document, content, number, nothing, *base.size(number))
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
    columns["content"] = pa.array([row.content for row in rows], pa.binary(DIGEST_BYTES))
    columns["rows"] = pa.array([row.rows for row in rows], pa.int64())
    columns["base"] = pa.array([row.base for row in rows], pa.int64())
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


def write_table(path: Path, table: pa.Table) -> None:
    """A block's table, whole or not at all."""

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    write_atomically(path, write)
