"""One shard of a snapshot, mapped from disk: search, tokens, text, documents.

Chunk ids and document numbers are those of the whole snapshot, here as everywhere outside of the files.
Axes: Q queries, K neighbours, N chunks, M tokens of a chunk, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError, CorruptError
from openbook_core.tokenizer import Tokenizer
from openbook_database.allowed import Allowed
from openbook_database.documents import DocumentTable
from openbook_database.exclusions import Exclusions, RowRanges, starts_of, sums_of
from openbook_database.files import map_array, read_ahead
from openbook_database.index.files import open_index
from openbook_database.index.gpu import Gpu
from openbook_database.index.recipe import parse_recipe
from openbook_database.manifest import Manifest, ShardEntry
from openbook_database.scoring import MISSING, Hits, best
from openbook_database.search import MinScore, check_query, search_rows
from openbook_database.text import CONTEXT, chunk_text

# Queries [q, d], k, exclusions, minimum scores and filters of one search that was checked.
Search = Callable[[NDArray[np.float32], int, Exclusions | None, MinScore, Allowed | None], Hits]


def shard_folder(number: int) -> str:
    """Folder of a shard inside its snapshot."""
    return f"shard-{number:05d}"


class Shard:
    """A contiguous range of documents. Safe to use from several threads at once."""

    def __init__(
        self, snapshot: Path, manifest: Manifest, number: int, documents: DocumentTable, tokenizer: Tokenizer
    ) -> None:
        """Maps the shard's files; raises CorruptError where one is missing or differs in size from the manifest."""
        self.number = number
        self.entry: ShardEntry = manifest.shards[number]
        self.snapshot_id = manifest.snapshot_id
        self.chunk_length = manifest.contract.chunk_length
        self.dimension = manifest.contract.dimension
        self.documents = documents
        self._manifest = manifest
        self._tokenizer = tokenizer
        folder, rows = snapshot / shard_folder(number), self.entry.rows
        self._tokens_NM: NDArray[np.unsignedinteger] = map_array(
            folder / "tokens.bin", manifest.token_dtype, (rows, self.chunk_length)
        )
        self._lengths_N: NDArray[np.uint16] = map_array(folder / "lengths.bin", "u2", (rows,))
        self._documents_N: NDArray[np.uint32] = map_array(folder / "documents.bin", "u4", (rows,))
        self._elsewhere: Search | None = None
        self._index = open_index(
            parse_recipe(manifest.index.factory),
            snapshot,
            folder,
            rows=rows,
            dimension=self.dimension,
            max_norm=self.entry.max_norm,
            reach=self.entry.reach,
            search=manifest.index.search,
        )

    @property
    def rows(self) -> int:
        """Chunks of this shard."""
        return self.entry.rows

    @property
    def token_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type of token ids: uint16 or uint32."""
        return self._tokens_NM.dtype

    @property
    def gpu_bytes(self) -> int:
        """What `move_to` takes on the device; ConfigError where no GPU can hold such an index."""
        return self._index.gpu_bytes

    def move_to(self, gpu: Gpu) -> None:
        """As `IndexReader.move_to`."""
        self._index.move_to(gpu)

    def search_elsewhere(self, search: Search) -> None:
        """Have `search` answer instead, before the first search; `search_here` still does it here."""
        self._elsewhere = search

    def search(
        self,
        queries_QD: NDArray[np.float32],
        k: int,
        exclude: Exclusions | Sequence[Collection[int]] | None = None,
        min_score: MinScore = None,
        allowed: Allowed | Sequence[NDArray[np.bool_] | None] | None = None,
    ) -> Hits:
        """The k nearest chunks of this shard for each query, among the rows that the index compares with it.

        queries_QD: float32 [q, d]. exclude: for each query the numbers of documents whose chunks must not come back
        (numbers of other shards' documents only widen the search). min_score: neighbours that score less are
        left out; one for all, or one for each.
        allowed: for each query which documents [n] of the snapshot alone may come back, None for all (`filters`).
        The answer depends on the query alone, not on others in the batch. Raises ArgumentError naming the field.
        """
        queries_QD = check_query(queries_QD, k, self.dimension)
        if exclude is not None and len(exclude) != len(queries_QD):
            raise ArgumentError(
                f"exclude: give one set of documents for each of {len(queries_QD)} queries, given {len(exclude)}",
                field="exclusions",
            )
        if allowed is not None and len(allowed) != len(queries_QD):
            raise ArgumentError(
                f"allowed: give one filter for each of {len(queries_QD)} queries, given {len(allowed)}", field="filters"
            )
        return self.search_checked(
            queries_QD,
            k,
            None if exclude is None else Exclusions.of(exclude),
            min_score,
            None if allowed is None else Allowed.of(allowed),
        )

    @property
    def search_checked(self) -> Search:
        """`search`, of what was checked, wherever it is answered."""
        return self._elsewhere or self.search_here

    def search_here(
        self,
        queries_QD: NDArray[np.float32],
        k: int,
        exclude: Exclusions | None,
        min_score: MinScore,
        allowed: Allowed | None,
    ) -> Hits:
        """`search`, of what was checked, by the index of this process."""
        excluded, wanted_Q = None, np.full(len(queries_QD), k, dtype=np.int64)
        if exclude is not None:
            excluded, chunks_Q = self._left_out(exclude)
            wanted_Q += chunks_Q
        allowed_rows = None
        if allowed is not None:
            allowed_rows = allowed.each(self._rows_allowed)
            wanted_Q += allowed.sums(lambda mask_N: int(self.documents.rows[~mask_N].sum()))
        hits = search_rows(
            self._index,
            queries_QD,
            k,
            excluded=excluded,
            allowed=allowed_rows,
            min_score=min_score,
            wanted_Q=wanted_Q,
        )
        hits.ids_QK[hits.ids_QK != MISSING] += self.entry.first_row
        return hits

    def holds(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which chunk ids are in this shard."""
        return (ids >= self.entry.first_row) & (ids < self.entry.end_row)

    def tokens(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint16]]:
        """Token ids [n, 2 m] of each chunk and its continuation, each padded with 0 at its end, and tokens used [n, 2].

        A continuation is the next chunk of the same document; at a document's end its length is 0.
        """
        rows_N = self._local(ids)
        both_2N = np.concatenate([rows_N, np.minimum(rows_N + 1, self.rows - 1)])
        for array_NX in (self._tokens_NM, self._lengths_N, self._documents_N):
            read_ahead(array_NX, both_2N)
        next_N, goes_on_N = self._next(rows_N)
        tokens_N2M = np.stack([self._tokens_NM[rows_N], self._tokens_NM[next_N]], axis=1)
        lengths_N2 = np.stack([self._lengths_N[rows_N], self._lengths_N[next_N]], axis=1)
        tokens_N2M[~goes_on_N, 1] = 0
        lengths_N2[~goes_on_N, 1] = 0
        return tokens_N2M.reshape(len(rows_N), 2 * self.chunk_length), lengths_N2

    def text(self, ids: NDArray[np.int64]) -> list[str]:
        """Text of each chunk; see `openbook_database.text` for what a chunk's text is."""
        return [self._row_text(int(row)) for row in self._local(ids)]

    def continuation_text(self, ids: NDArray[np.int64]) -> list[str]:
        """Text of each chunk's continuation, empty at a document's end."""
        rows_N, goes_on_N = self._next(self._local(ids))
        return [self._row_text(int(row)) if goes_on else "" for row, goes_on in zip(rows_N, goes_on_N, strict=True)]

    def document_numbers(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the document that each chunk is from; `documents` has their records."""
        return self._documents_N[self._local(ids)].astype(np.int64) + self.entry.first_document

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors [n, d] as the index holds them; decoded, where it holds codes."""
        return self._index.vectors(self._local(ids)).copy()

    def check_golden(self) -> None:
        """Answer the golden queries; raises CorruptError where this shard's part differs from what the manifest expects, or on
        a GPU's graph is worse at too many places."""
        golden = self._manifest.golden
        expected_ids_NK = np.where(self.holds(golden.ids_NK), golden.ids_NK, MISSING)
        k = golden.ids_NK.shape[1]
        expected = best(expected_ids_NK, golden.scores_NK, k)
        found = self.search(golden.queries_ND, k)
        compared_NK = expected.ids_QK != MISSING
        same_NK = (found.ids_QK == expected.ids_QK) & (found.scores_QK == expected.scores_QK)
        if self._index.golden_share < 1:
            same_NK = (found.ids_QK != MISSING) & (found.scores_QK >= expected.scores_QK)
        wrong = np.flatnonzero((compared_NK & ~same_NK).any(axis=1))
        if same_NK[compared_NK].sum() < self._index.golden_share * compared_NK.sum():
            query = int(wrong[0])
            raise CorruptError(
                f"{shard_folder(self.number)}: {len(wrong)} of {len(same_NK)} golden queries are answered differently; query "
                f"{query} expects chunks {expected.ids_QK[query].tolist()}, found {found.ids_QK[query].tolist()}"
            )

    def _local(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        if not self.holds(ids).all():
            wrong = int(ids[~self.holds(ids)][0])
            raise ArgumentError(
                f"chunk id {wrong} is not in shard {self.number}, which holds {self.entry.first_row} to "
                f"{self.entry.end_row - 1}",
                field="ids",
            )
        return ids - self.entry.first_row

    def _next(self, rows_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The row after each one (itself at the shard's end), and whether it is of the same document."""
        next_N = np.minimum(rows_N + 1, self.rows - 1)
        goes_on_N = (next_N > rows_N) & (self._documents_N[next_N] == self._documents_N[rows_N])
        return next_N, goes_on_N

    def _row_text(self, row: int) -> str:
        document = self._documents_N[row]
        first = row
        while first > 0 and (row - first) * self.chunk_length < CONTEXT and self._documents_N[first - 1] == document:
            first -= 1
        last = row + 1 == self.rows or self._documents_N[row + 1] != document
        left = self._tokens_NM[first:row].reshape(-1)[-CONTEXT:]
        return chunk_text(self._tokenizer, left, self._tokens_NM[row, : self._lengths_N[row]], last=bool(last))

    def _left_out(self, exclude: Exclusions) -> tuple[RowRanges, NDArray[np.int64]]:
        """Local row ranges of this shard's documents among the excluded ones, and the chunks [q] of all of them in the
        whole snapshot."""
        known_E = exclude.numbers_E < len(self.documents)
        numbers_E = np.where(known_E, exclude.numbers_E, 0)
        rows_E = self.documents.rows[numbers_E]
        first_E = self.documents.first_rows[numbers_E] - self.entry.first_row
        mine_E = known_E & (numbers_E >= self.entry.first_document) & (numbers_E < self.entry.end_document)
        ranges = RowRanges(
            first_E[mine_E], (first_E + rows_E)[mine_E], starts_of(sums_of(mine_E.astype(np.int64), exclude.starts_Q))
        )
        return ranges, sums_of(np.where(known_E, rows_E, 0), exclude.starts_Q)

    def _rows_allowed(self, allowed_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The rows of this shard whose documents are among `allowed_N` of the snapshot's."""
        mine = slice(self.entry.first_document, self.entry.end_document)
        return np.repeat(allowed_N[mine], self.documents.rows[mine])
