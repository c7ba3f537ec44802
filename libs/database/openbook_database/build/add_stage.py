"""Stage "add": the files of each shard. A file that is there is whole, so an interrupted shard goes on with the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openbook_database.build.corpus import Corpus
from openbook_database.build.embed_stage import read_vectors
from openbook_database.build.progress import Stage
from openbook_database.build.settings import BuildSettings
from openbook_database.build.shares import Links, link_shard
from openbook_database.build.workspace import Workspace
from openbook_database.files import write_atomically
from openbook_database.index import write_index
from openbook_database.shard import shard_folder

Block = NDArray[np.float32]


def split_documents(document_rows: NDArray[np.int64], shards: int) -> list[tuple[int, int]]:
    """Document ranges [first, end) of at most `shards` shards with about equally many rows, each with a document."""
    documents = len(document_rows)
    shards = min(shards, documents)
    ends = np.cumsum(document_rows)
    ranges = []
    first = 0
    for shard in range(1, shards + 1):
        wanted = ends[-1] * shard / shards
        end = int(np.argmin(np.abs(ends - wanted))) + 1
        end = min(max(end, first + 1), documents - (shards - shard))
        ranges.append((first, end))
        first = end
    return ranges


def run_add_stage(
    corpus: Corpus,
    ranges: Sequence[tuple[int, int]],
    dimension: int,
    settings: BuildSettings,
    work: Workspace,
    stage: Stage,
    links: Links | None = None,
) -> None:
    """Write the shards over the document ranges `ranges`; those in `links` are shared with the base."""
    for number, (first_document, end_document) in enumerate(ranges):
        folder = work.snapshot / shard_folder(number)
        if corpus.base is not None and links and number in links:
            link_shard(corpus.base, links[number], folder)
            stage.advance(int(corpus.document_rows[first_document:end_document].sum()), reused=True)
            continue
        first = int(corpus.first_rows[first_document])
        rows = int(corpus.document_rows[first_document:end_document].sum())

        def vectors(first: int = first, end: int = first + rows) -> Iterable[Block]:
            return read_vectors(work, corpus, dimension, settings.embed_block, first, end)

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
                [
                    np.repeat(
                        np.arange(end_document - first_document, dtype="<u4"),
                        corpus.document_rows[first_document:end_document],
                    ).tobytes()
                ]
            ),
            "lists.faiss": lambda path, blocks=vectors: write_index(path, dimension, blocks()),  # type: ignore[misc]
        }
        if settings.keep_vectors:
            files["vectors.f16"] = _bytes(block.astype("<f2").tobytes() for block in vectors())
        missing = {name: write for name, write in files.items() if not (folder / name).exists()}
        for name, write in missing.items():
            write_atomically(folder / name, write)
        stage.advance(rows, reused=not missing)


def _bytes(parts: Iterable[bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as stream:
            for part in parts:
                stream.write(part)

    return write
