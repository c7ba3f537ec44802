"""The corpus on its chunk grid, and batches as a pure function of (seed, epoch, index).

Every document starts on a chunk border and its last chunk is filled up, so the grid is the one of the snapshots that
are built from the same documents. Axes: C chunks of the corpus, M tokens of a chunk (m), B batch, T tokens, L chunks
of a sequence.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ConfigError, InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.chunking import slices
from openbook_database.reader import Document, DocumentReader
from openbook_database.text import CONTEXT, chunk_text
from openbook_trainer.config import BatchConfig, CorpusConfig

IGNORED = -100
# First word of each random stream's seed: without it (seed, epoch) and (seed, epoch, 0) are one stream.
_OFFSET, _PERMUTATION, _SAMPLE = 1, 2, 3
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Query:
    """What one chunk asks the database, and the document that must not answer, of which it is chunk number `chunk`."""

    text: str
    document_id: str
    chunk: int = 0


@dataclass(frozen=True)
class Batch:
    """B sequences of L chunks. A row whose first tokens were dropped is filled up at its end with ignored labels.

    `queries[b][l]` is None where chunk l gets no neighbours. `document_ids_BT` is None where each row is of one
    document.
    """

    input_ids_BT: NDArray[np.int64]
    labels_BT: NDArray[np.int64]
    document_ids_BT: NDArray[np.int64] | None
    first_chunk: tuple[int, ...]
    queries: tuple[tuple[Query | None, ...], ...]


class ChunkedCorpus:
    """Tokens [C, M] of documents, in order, with the chunk's used length [C] and document [C]."""

    def __init__(
        self, documents: list[tuple[str, NDArray[np.uint32]]], tokenizer: Tokenizer, chunk_length: int
    ) -> None:
        """`documents`: external id and token ids. The label of a document's last token is the end-of-text token."""
        m = chunk_length
        self.tokenizer, self.chunk_length = tokenizer, m
        self.document_ids = [external_id for external_id, _ in documents]
        self.end_id = tokenizer.eos_id if tokenizer.eos_id is not None else 0
        counts = np.asarray([-(-len(tokens) // m) for _, tokens in documents], dtype=np.int64)
        self.document_C = np.repeat(np.arange(len(documents)), counts)
        firsts = np.cumsum(counts) - counts
        tokens_N = np.full(int(counts.sum()) * m, self.end_id, dtype=np.int64)
        labels_N = np.full_like(tokens_N, IGNORED)
        self.lengths_C = np.full(int(counts.sum()), m, dtype=np.int64)
        for first, count, (_, tokens) in zip(firsts.tolist(), counts.tolist(), documents, strict=True):
            start, end = first * m, first * m + len(tokens)
            tokens_N[start:end] = tokens
            labels_N[start : end - 1] = tokens[1:]
            labels_N[end - 1] = self.end_id
            self.lengths_C[first + count - 1] = len(tokens) - (count - 1) * m
        self.tokens_CM, self.labels_CM = tokens_N.reshape(-1, m), labels_N.reshape(-1, m)

    @property
    def chunks(self) -> int:
        return len(self.tokens_CM)

    def digest(self) -> str:
        """SHA-256 (hexadecimal) over ids, grid and tokens: equal for equal corpora, wherever their files lie."""
        digest = hashlib.sha256("\0".join(self.document_ids).encode())
        for array in (self.document_C, self.lengths_C, self.tokens_CM):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def query(self, chunk: int, dropped: int = 0) -> Query | None:
        """The text of a chunk without its first `dropped` tokens; None where it is blank."""
        document = int(self.document_C[chunk])
        begin = chunk * self.chunk_length + dropped
        end = chunk * self.chunk_length + int(self.lengths_C[chunk])
        flat = self.tokens_CM.reshape(-1).view(np.uint64)
        first = int(np.searchsorted(self.document_C, document))
        left = flat[max(first * self.chunk_length, begin - CONTEXT) : begin]
        last = chunk + 1 == self.chunks or self.document_C[chunk + 1] != document
        text = chunk_text(self.tokenizer, left, flat[begin:end], last=bool(last)) if begin < end else ""
        return Query(text, self.document_ids[document], chunk - first) if text.strip() else None

    def documents(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """External id and token ids of each document, in order."""
        firsts_D = np.searchsorted(self.document_C, np.arange(len(self.document_ids) + 1))
        for external_id, first, end in zip(self.document_ids, firsts_D[:-1], firsts_D[1:], strict=True):
            yield external_id, self.tokens_CM[first:end].reshape(-1)[: int(self.lengths_C[first:end].sum())]


class SequenceOrder:
    """Which sequence comes when. Sample number g of a run is index g mod n of epoch g div n.

    An epoch starts at a random one of the chunks that n whole sequences leave over, and visits its sequences in a
    random order; both, the phase and the dropped neighbours follow from (seed, epoch, index) alone.
    """

    def __init__(
        self,
        corpus: ChunkedCorpus,
        batch: BatchConfig,
        seed: int,
        *,
        asks: bool = True,
        part: str = "the corpus to train on",
    ) -> None:
        """Raises ConfigError where the corpus, called `part`, is shorter than a sequence. Without `asks` no chunk gets
        neighbours; all else stays the same."""
        self.corpus, self.batch, self.seed, self.asks = corpus, batch, seed, asks
        self.sequences = corpus.chunks // batch.chunks
        if not self.sequences:
            raise ConfigError(
                f"{part} has {corpus.chunks} chunks of {corpus.chunk_length} tokens, a sequence needs "
                f"{batch.chunks}; give more documents or set batch.chunks lower",
                field="batch.chunks",
            )
        self._epoch = -1

    def samples(self, first: int, count: int) -> Batch:
        """The samples [first, first + count) of the run."""
        return self._assemble([self._sample(number) for number in range(first, first + count)])

    def fixed(self, sequences: int, micro: int) -> Iterator[Batch]:
        """Up to `sequences` spread evenly over the corpus, whole chunks, nothing dropped: the evaluation's batches."""
        count = min(sequences, self.sequences)
        places = np.linspace(0, self.sequences - 1, count).astype(np.int64) * self.batch.chunks
        none = np.zeros(self.batch.chunks, dtype=np.bool_)
        rows = [(int(place), 0, none) for place in places]
        for start in range(0, count, micro):
            yield self._assemble(rows[start : start + micro])

    def _sample(self, number: int) -> tuple[int, int, NDArray[np.bool_]]:
        """First chunk of the sequence, tokens dropped from its start, and which chunks get no neighbours."""
        epoch, index = divmod(number, self.sequences)
        if epoch != self._epoch:
            self._offset = int(self._random(_OFFSET, epoch).integers(self.corpus.chunks % self.batch.chunks + 1))
            self._permutation = self._random(_PERMUTATION, epoch).permutation(self.sequences)
            self._epoch = epoch
        generator = self._random(_SAMPLE, epoch, index)
        dropped = int(generator.integers(self.corpus.chunk_length)) if self.batch.vary_phase else 0
        masked_L = generator.random(self.batch.chunks) < self.batch.neighbor_drop
        return self._offset + int(self._permutation[index]) * self.batch.chunks, dropped, masked_L

    def _used(self, chunk: int) -> bool:
        """Whether anything reads its neighbours: not where its document ends within it, before they could be used."""
        return self.asks and int(self.corpus.lengths_C[chunk]) == self.corpus.chunk_length

    def _random(self, purpose: int, *place: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([purpose, self.seed, *place]))

    def _assemble(self, rows: list[tuple[int, int, NDArray[np.bool_]]]) -> Batch:
        corpus, m = self.corpus, self.corpus.chunk_length
        length = self.batch.chunks * m
        inputs_BT = np.full((len(rows), length), corpus.end_id, dtype=np.int64)
        labels_BT = np.full_like(inputs_BT, IGNORED)
        documents_BT = np.empty_like(inputs_BT)
        queries = []
        for row, (first, dropped, masked_L) in enumerate(rows):
            kept = length - dropped
            chunks = range(first, first + self.batch.chunks)
            inputs_BT[row, :kept] = corpus.tokens_CM[chunks.start : chunks.stop].reshape(-1)[dropped:]
            labels_BT[row, :kept] = corpus.labels_CM[chunks.start : chunks.stop].reshape(-1)[dropped:]
            documents_BT[row, :kept] = np.repeat(corpus.document_C[chunks.start : chunks.stop], m)[dropped:]
            documents_BT[row, kept:] = documents_BT[row, kept - 1]
            queries.append(
                tuple(
                    None if masked or not self._used(chunk) else corpus.query(chunk, dropped if chunk == first else 0)
                    for chunk, masked in zip(chunks, masked_L.tolist(), strict=True)
                )
            )
        packed = bool((documents_BT != documents_BT[:, :1]).any())
        phases = tuple(m - dropped for _, dropped, _ in rows)
        return Batch(inputs_BT, labels_BT, documents_BT if packed else None, phases, tuple(queries))


def read_corpus(config: CorpusConfig, tokenizer: Tokenizer, chunk_length: int) -> tuple[ChunkedCorpus, ChunkedCorpus]:
    """The corpus to train on and the held-out one, of the first `max_documents` that are not empty over all sources.

    Raises InputError for a file or line that holds no document.
    """
    known: set[str] = set()

    def tokenise(document: Document) -> tuple[str, NDArray[np.uint32]]:
        pieces = [tokenizer.encode(piece) for _, piece in slices(document.text, tokenizer)]
        return document.external_id, np.concatenate(pieces)

    readers = [
        DocumentReader(source, config.fields, skip_bad_lines=config.skip_bad_lines, known=known)
        for source in config.sources
    ]
    found = (document for reader in readers for document in reader.read(tokenise) if len(document[1]))
    documents = list(islice(found, config.max_documents))
    skipped = sum((reader.skipped for reader in readers), Counter[str]())
    if skipped:
        logger.warning("bad lines skipped: %s", dict(skipped))
    if len(documents) < 2:
        names = ", ".join(str(source.path) for source in config.sources)
        raise InputError(
            f"{names}: {len(documents)} documents; at least 2 are needed, one of them to be held out for evaluation",
            field="corpus.sources",
        )
    held_out = _held_out([external_id for external_id, _ in documents], config.held_out)
    parts: tuple[list[tuple[str, NDArray[np.uint32]]], ...] = ([], [])
    for document in documents:
        parts[document[0] in held_out].append(document)
    return (
        ChunkedCorpus(parts[0], tokenizer, chunk_length),
        ChunkedCorpus(parts[1], tokenizer, chunk_length),
    )


def _held_out(ids: list[str], fraction: float) -> set[str]:
    """The ids with the smallest hashes: at least one, and not all."""
    count = min(max(1, round(fraction * len(ids))), len(ids) - 1)
    return set(sorted(ids, key=lambda external_id: hashlib.sha256(external_id.encode()).digest())[:count])
