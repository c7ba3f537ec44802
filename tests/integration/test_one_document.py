"""A database of one document that is excluded: nothing is found, and nobody who reads the reply stumbles."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from openbook_core.clients import AdminClient, RetrieverClient
from openbook_database.snapshot import Snapshot
from openbook_generator.retrieval import Retriever
from openbook_prompt.passage import Pin
from openbook_trainer.config import RetrievalConfig
from openbook_trainer.data import Batch, Query
from openbook_trainer.neighbours import LiveSource

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE

M = 32
DOCUMENT = "doc-000"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Address of a router over a database of one document, and its snapshot."""
    path = support.build_edition(tmp_path, "only", documents=1)
    snapshot = Snapshot.open(path).id
    embedder = support.start_embedder()
    with support.cluster(tmp_path, tmp_path / "registry", router=("--embedder", embedder.address)) as processes:
        with AdminClient(processes[0].address) as admin:
            admin.register(DATABASE, str(path))
            support.move(admin, snapshot)
        yield processes[0].address, snapshot
    embedder.stop(0)


def test_the_only_document_excluded(served: tuple[str, str]) -> None:
    address, snapshot = served
    with RetrieverClient(address) as client:
        found = client.search_text(DATABASE, ["river"], 2, exclude=[[DOCUMENT]], tokens=True, documents=True)
        assert found.ids.tolist() == [[-1, -1]]
        assert found.chunks.tokens is not None
        assert found.chunks.tokens.shape == (0, 2 * M)

        config = RetrievalConfig(address=address, database=DATABASE)
        nothing = np.zeros((1, 1), np.int64)
        batch = Batch(nothing, nothing, None, (M,), ((Query("river", DOCUMENT),),))
        neighbors = LiveSource(client, config, snapshot, 2, M).fetch(batch)
        assert not neighbors.lengths_BLK.any()
        assert not neighbors.masked

        other = Batch(nothing, nothing, None, (M,), ((Query("river", "another"),),))
        assert LiveSource(client, config, snapshot, 2, M).fetch(other).lengths_BLK.any()


def test_the_generator_reads_an_empty_answer(served: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    address, snapshot = served
    with RetrieverClient(address) as client:
        search_text = client.search_text
        monkeypatch.setattr(client, "search_text", lambda *a, **options: search_text(*a, min_score=2.0, **options))
        found = Retriever(client, 10.0).neighbors(Pin(DATABASE, snapshot, 1), ["river", " ", "coast"], 2, 2 * M)
    assert found.neighbors.ids_LKR.shape == (3, 2, 2 * M)
    assert found.neighbors.lengths_LK is not None
    assert not found.neighbors.lengths_LK.any()
    assert found.chunk_ids == [(), (), ()]
