"""Stage "add": the files of each shard. A file that is there is whole, so an interrupted shard goes on with the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openbook_database.build.corpus import Corpus
from openbook_database.build.embed_stage import read_vectors
from openbook_database.build.engine import Engine, Tell
from openbook_database.build.progress import Stage
from openbook_database.build.settings import BuildSettings
from openbook_database.build.workspace import Workspace
from openbook_database.files import write_atomically
from openbook_database.index.files import index_writers
from openbook_database.index.recipe import Recipe
from openbook_database.shard import shard_folder

Block = NDArray[np.float32]


def split_documents(document_rows: NDArray[np.int64], shards: int) -> list[tuple[int, int]]:
    """Document ranges [first, end) of at most `shards` shards with about equally many rows, each with a document."""
    documents = len(document_rows)
    shards = min(shards, documents)
    ends = np.cumsum(document_rows)
    ranges: list[tuple[int, int]] = []
    first = 0
    for shard in range(1, shards + 1):
        wanted = ends[-1] * shard / shards
        place = min(int(np.searchsorted(ends, wanted)), documents - 1)
        nearer = place > 0 and wanted - ends[place - 1] <= ends[place] - wanted
        end = place if nearer else place + 1
        end = min(max(end, first + 1), documents - (shards - shard))
        ranges.append((first, end))
        first = end
    return ranges


def run_add_stage(
    corpus: Corpus,
    ranges: Sequence[tuple[int, int]],
    recipe: Recipe,
    dimension: int,
    settings: BuildSettings,
    work: Workspace,
    stage: Stage,
    engine: Engine,
    *,
    gpu: bool = False,
) -> None:
    """Write the shards over the document ranges `ranges`."""
    job = AddJob(work, settings, tuple(ranges), dimension, recipe, gpu)
    rows = [int(corpus.document_rows[first:end].sum()) for first, end in ranges]
    missing = [number for number, range_ in enumerate(ranges) if job.files(corpus, number, *range_)]
    stage.advance(sum(rows) - sum(rows[number] for number in missing), reused=True)
    item_bytes = recipe.bytes_per_row(dimension) * max(rows)
    left = dict(enumerate(rows))

    def told(number: int, done: int) -> None:
        done = min(done, left[number])
        left[number] -= done
        stage.advance(done)

    with closing(engine.map(job, missing, name="shard", item_bytes=item_bytes, told=told)) as finished:
        for number in finished:
            told(number, left[number])


@dataclass(frozen=True)
class AddJob:
    """An `engine.Job`: the shard of a number. In any process that sees the work folder under the same path."""

    work: Workspace
    settings: BuildSettings
    ranges: tuple[tuple[int, int], ...]
    dimension: int
    index: Recipe
    gpu: bool = False

    def __call__(self) -> Callable[[int, Tell], None]:
        corpus = Corpus(self.work, self.settings.chunk_length)

        def write(number: int, tell: Tell) -> None:
            folder = self.work.snapshot / shard_folder(number)
            for name, write in self.files(corpus, number, *self.ranges[number], tell).items():
                write_atomically(folder / name, write)

        return write

    def files(
        self,
        corpus: Corpus,
        number: int,
        first_document: int,
        end_document: int,
        tell: Tell = lambda rows: None,
    ) -> dict[str, Callable[[Path], None]]:
        """What writes the files of a shard that are not there yet; `tell` hears of the rows that go into the index."""
        work, settings, dimension = self.work, self.settings, self.dimension
        folder = work.snapshot / shard_folder(number)
        first = int(corpus.first_rows[first_document])
        rows = int(corpus.document_rows[first_document:end_document].sum())

        def vectors(first: int = first, end: int = first + rows) -> Iterable[Block]:
            return read_vectors(work, corpus, dimension, settings.embed_block, first, end)

        def indexed() -> Iterable[Block]:
            for block in vectors():
                yield block
                tell(len(block))

        files: dict[str, Callable[[Path], None]] = {
            "tokens.bin": _bytes(
                corpus.tokens(document, 0, int(corpus.document_rows[document]))[0].tobytes()
                for document in range(first_document, end_document)
            ),
            "lengths.bin": _bytes(
                corpus.tokens(document, 0, int(corpus.document_rows[document]))[1].tobytes()
                for document in range(first_document, end_document)
            ),
            "documents.bin": _bytes(
                np.repeat(
                    np.arange(start - first_document, end - first_document, dtype="<u4"),
                    corpus.document_rows[start:end],
                ).tobytes()
                for start, end in _steps(first_document, end_document)
            ),
            **index_writers(self.index, work.snapshot, folder, rows, dimension, indexed, gpu=self.gpu),
        }
        if settings.keep_vectors:
            files["vectors.f16"] = _bytes(block.astype("<f2").tobytes() for block in vectors())
        return {name: write for name, write in files.items() if not (folder / name).exists()}


def _steps(first: int, end: int, step: int = 1 << 12) -> Iterator[tuple[int, int]]:
    for start in range(first, end, step):
        yield start, min(start + step, end)


def _bytes(parts: Iterable[bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as stream:
            for part in parts:
                stream.write(part)

    return write
