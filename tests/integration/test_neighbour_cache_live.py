"""The two sources of neighbours say the same: the live retriever's processes, and a cache made from the same snapshot."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from openbook_core.clients import AdminClient, RetrieverClient
from openbook_database.neighbours.corpus import SnapshotCorpus, TextCorpus
from openbook_database.neighbours.find import find_neighbours
from openbook_database.reader import Source
from openbook_database.snapshot import Snapshot
from openbook_trainer.cached import CachedSource
from openbook_trainer.config import BatchConfig, CorpusConfig, RetrievalConfig
from openbook_trainer.data import SequenceOrder, read_corpus
from openbook_trainer.neighbours import LiveSource

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, TinyEncoder

M, K = 32, 2


class QueryEncoder(TinyEncoder):
    encode_queries = TinyEncoder.encode

    def encode(self, texts):  # type: ignore[no-untyped-def]
        return super().encode(texts)


def test_live_and_cached_neighbours_are_equal(tmp_path: Path) -> None:
    path = support.build_edition(tmp_path, "one", documents=24)
    book = Snapshot.open(path)
    source = Source(path=tmp_path / "one.jsonl")
    caches = []
    for name, make in (
        ("of-rows", lambda folder: TextCorpus([source], folder, book.tokenizer, M)),
        ("of-snapshot", lambda folder: SnapshotCorpus(book)),
    ):
        find_neighbours(make, book, QueryEncoder(), tmp_path / name, k=K, block_chunks=50)
        caches.append(tmp_path / name)
    settings = CorpusConfig(sources=(source,), tokenizer=str(path / "tokenizer"), held_out=0.2)
    corpora = read_corpus(settings, book.tokenizer, M)
    embedder = support.start_embedder()
    compared = 0
    with support.cluster(tmp_path, tmp_path / "registry", router=("--embedder", embedder.address)) as processes:
        address = processes[0].address
        with AdminClient(address) as admin:
            admin.register(DATABASE, str(path))
            support.move(admin, book.id)
        with RetrieverClient(address) as client:
            live = LiveSource(client, RetrievalConfig(address=address, database=DATABASE), book.id, K, M)
            cached = [CachedSource(cache, path, K, corpora) for cache in caches]
            for corpus in corpora:
                order = SequenceOrder(corpus, BatchConfig(chunks=3, micro=2, sequences=2, vary_phase=False), 1)
                for batch in [*order.fixed(4, 2), order.samples(0, 8)]:
                    expected = live.fetch(batch)
                    for each in cached:
                        found = each.fetch(batch)
                        np.testing.assert_array_equal(found.ids_BLKR, expected.ids_BLKR)
                        np.testing.assert_array_equal(found.lengths_BLK, expected.lengths_BLK)
                    compared += int((expected.lengths_BLK > 0).sum())
    embedder.stop(0)
    assert compared > 50
