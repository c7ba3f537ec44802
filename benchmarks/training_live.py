"""Training on a real book: neighbours from the running retriever against the neighbour cache, query vectors at hand.

The vectors are hashes of words, so that no encoder runs and none is waited for: what is measured is the search, its
transport and the tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training_steps import Steps, Work, as_trained

from openbook_cli.demo.processes import Processes
from openbook_cli.swap import swap_to
from openbook_core.clients import AdminClient, RetrieverClient, SearchResult
from openbook_core.tokenizer import Tokenizer
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.neighbours.corpus import SnapshotCorpus
from openbook_database.neighbours.find import find_neighbours
from openbook_database.reader import Source
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder
from openbook_model import RetroConfig
from openbook_trainer.cached import CachedSource
from openbook_trainer.config import BatchConfig, CorpusConfig, RetrievalConfig
from openbook_trainer.data import ChunkedCorpus, SequenceOrder, read_corpus
from openbook_trainer.neighbours import LiveSource, NeighborSource
from openbook_trainer.prefetch import Prefetch

DATABASE, DIMENSION = "bench", 384


class VectorsAtHand:
    """A `neighbours.RetrieverApi` whose texts have their vectors already."""

    def __init__(self, client: RetrieverClient, encoder: HashEncoder) -> None:
        self._client, self._encoder = client, encoder

    def search_text(self, database: str, texts: Sequence[str], k: int, **options: Any) -> SearchResult:
        return self._client.search(database, self._encoder.encode_queries(texts), k, **options)

    def close(self) -> None:
        self._client.close()


def measure_live(
    config: RetroConfig,
    dtype: str,
    data: Path,
    tokenizer: str,
    *,
    documents: int,
    sequences: int,
    chunks: int,
    steps: int,
    rounds: int,
    work: Path,
) -> dict[str, Any]:
    """By source, for each round of `steps` steps: their seconds and those spent waiting. The first batch of a round is
    fetched before its clock starts, since a run waits so once."""
    book, rows = work / "book", work / "rows.jsonl"
    corpus = _first(data, documents, rows, tokenizer, config.chunk_length)
    encoder = HashEncoder(DIMENSION)
    settings = BuildSettings(chunk_length=config.chunk_length)
    loaded = Tokenizer.load(tokenizer)
    build_snapshot([rows], book, database=DATABASE, tokenizer=loaded, encoder=encoder, settings=settings)
    snapshot = Snapshot.open(book)
    find_neighbours(lambda _: SnapshotCorpus(snapshot), snapshot, encoder, work / "cache", k=config.num_neighbors)
    batch = BatchConfig(sequences=sequences, micro=sequences, chunks=chunks)
    order = SequenceOrder(corpus, batch, seed=1)
    with Processes(work / "logs") as processes, as_trained("cpu") as world:
        address = _serve(processes, work, book)
        client = VectorsAtHand(RetrieverClient(address), encoder)
        live = RetrievalConfig(address=address, database=DATABASE)
        cached = CachedSource(work / "cache", book, config.num_neighbors, [corpus])
        sources: dict[str, NeighborSource] = {
            "live": LiveSource(client, live, snapshot.id, config.num_neighbors, config.chunk_length),
            "cache": cached,
        }
        side = Steps(config, world, dtype=dtype)
        side.step(_work(order, cached, 0, sequences))
        trials: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
        for number in range(rounds):
            for name in list(sources) if number % 2 == 0 else reversed(list(sources)):
                trials[name].append(_round(side, order, sources[name], number * steps, steps, sequences, live.prefetch))
        for source in sources.values():
            source.close()
    return {
        "parameters": side.parameters,
        "documents": documents,
        "chunks": corpus.chunks,
        "queries_per_step": sequences * chunks,
        "vectors": f"hashed words, {DIMENSION} wide",
        **trials,
    }


def _round(
    side: Steps, order: SequenceOrder, source: NeighborSource, first: int, steps: int, sequences: int, depth: int
) -> dict[str, float]:
    def works() -> Iterator[Work]:
        for number in range(first, first + steps):
            yield _work(order, source, number, sequences)

    ahead = Prefetch(works(), depth)
    try:
        batches = iter(ahead)
        work: Work | None = next(batches)
        begun, waited_s = time.perf_counter(), ahead.waited_s
        while work is not None:
            side.step(work)
            work = next(batches, None)
        return {"seconds": time.perf_counter() - begun, "waited_s": ahead.waited_s - waited_s}
    finally:
        ahead.close()


def _work(order: SequenceOrder, source: NeighborSource, number: int, sequences: int) -> Work:
    batch = order.samples(number * sequences, sequences)
    return batch, source.fetch(batch)


def _first(data: Path, documents: int, rows: Path, tokenizer: str, chunk_length: int) -> ChunkedCorpus:
    """The first documents as a corpus, which is the book as well; the held-out part stays in the book alone."""
    from openbook_database.streams import read_lines

    with rows.open("w", encoding="utf-8") as stream:
        for _, line in zip(range(documents), read_lines(data), strict=False):
            stream.write(json.dumps(json.loads(line), ensure_ascii=False) + "\n")
    return read_corpus(
        CorpusConfig(sources=(Source(path=rows),), tokenizer=tokenizer), Tokenizer.load(tokenizer), chunk_length
    )[0]


def _serve(processes: Processes, work: Path, book: Path) -> str:
    registry = str(work / "registry")
    processes.start("shard", ["serve", "retriever", "--role", "shard", "--registry", registry])
    address = processes.start(
        "router", ["serve", "retriever", "--role", "router", "--port", "0", "--registry", registry]
    )
    with AdminClient(address) as admin:
        swap_to(admin, DATABASE, admin.register(DATABASE, str(book.absolute())).snapshot)
    return address
