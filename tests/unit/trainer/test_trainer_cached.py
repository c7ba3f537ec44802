"""Training from a neighbour cache: no retriever, the same run again, and refusals that name what does not fit."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_fakes import M, byte_tokenizer, settings, write_corpus

from openbook_core.errors import ConfigError, MismatchError, OpenbookError
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.neighbours.corpus import SnapshotCorpus, TextCorpus
from openbook_database.neighbours.find import find_neighbours
from openbook_database.reader import Source
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder, write_rows
from openbook_trainer import app, checkpoint
from openbook_trainer.cached import CachedSource
from openbook_trainer.config import TrainConfig
from openbook_trainer.data import Batch, ChunkedCorpus, Query


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, the snapshot of its documents, and the cache of their neighbours."""
    found = tmp_path_factory.mktemp("trained")
    source = write_corpus(found)
    build_snapshot(
        [source],
        found / "book",
        database="book",
        tokenizer=byte_tokenizer(),
        encoder=HashEncoder(),
        settings=BuildSettings(chunk_length=M, shards=2),
    )
    book = Snapshot.open(found / "book")
    find_neighbours(lambda _: SnapshotCorpus(book), book, HashEncoder(), found / "cache", k=2)
    return found


def config(folder: Path, out: Path, **changes: Any) -> TrainConfig:
    values = settings(folder, out=str(out), **changes)
    values["retrieval"] = {
        "cache": str(folder / "cache"),
        "folder": str(folder / "book"),
        **changes.get("retrieval", {}),
    }
    return TrainConfig.parse(values)


def test_a_run_needs_no_retriever_and_resumes_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    straight = app.train(config(folder, tmp_path / "straight", steps=2))
    app.train(config(folder, tmp_path / "halves", steps=2, stop_at=1))
    resumed = app.train(config(folder, tmp_path / "halves", steps=2))
    assert resumed["weights_hash"] == straight["weights_hash"]
    assert straight["snapshot"] == Snapshot.open(folder / "book").id
    assert not straight["masked_batches"]
    assert straight["loss_on"] != straight["loss_off"]


def test_tokens_are_those_of_the_ids_in_the_cache(folder: Path) -> None:
    book = Snapshot.open(folder / "book")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    tokenizer = byte_tokenizer()
    corpus = ChunkedCorpus([(row["id"], tokenizer.encode(row["text"])) for row in rows], tokenizer, M)
    source = CachedSource(folder / "cache", folder / "book", 2, [corpus])
    nothing = np.zeros((1, 1), np.int64)
    chunk = int(np.flatnonzero(corpus.document_C == 3)[2])
    assert corpus.query(chunk) == Query(corpus.query(chunk).text, "d3", 2)  # type: ignore[union-attr]
    found = source.fetch(Batch(nothing, nothing, None, (M,), ((corpus.query(chunk), None),)))
    record = book.documents.record(book.documents.number("d3") or 0)
    hits = book.search(HashEncoder().encode([corpus.query(chunk).text]), 2, [{record.number}])  # type: ignore[union-attr]
    for place, chunk_id in enumerate(hits.ids_QK[0].tolist()):
        tokens, lengths = book.shard_of(chunk_id).tokens(np.asarray([chunk_id]))
        assert (found.ids_BLKR[0, 0, place] == tokens[0]).all()
        assert found.lengths_BLK[0, 0, place] == lengths[0].sum()
    assert not found.lengths_BLK[0, 1].any(), "a chunk without a query"


def test_own_document_in_the_cache_is_an_error(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    tokenizer, book = byte_tokenizer(), Snapshot.open(folder / "book")
    corpus = ChunkedCorpus([(row["id"], tokenizer.encode(row["text"])) for row in rows], tokenizer, M)
    nothing = np.zeros((1, 1), np.int64)
    batch = Batch(nothing, nothing, None, (M,), ((corpus.query(int(np.flatnonzero(corpus.document_C == 3)[2])),),))
    own = int(np.flatnonzero(book.documents.of_rows(np.arange(corpus.chunks)) == book.documents.number("d3"))[0])
    for exclude_own in (True, False):
        source = CachedSource(folder / "cache", folder / "book", 2, [corpus], exclude_own=exclude_own)
        source._cache.ids_CK = np.where(source._cache.ids_CK >= 0, own, -1)
        if exclude_own:
            with pytest.raises(OpenbookError, match="gives document 'd3' to itself"):
                source.fetch(batch)
        else:
            assert source.fetch(batch).lengths_BLK.all()


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache holds 2 neighbours of each chunk, model\.num_neighbors is 3"):
        app.train(config(folder, tmp_path / "run", model={"num_neighbors": 3}))
    rows = (folder / "corpus.jsonl").read_text().replace('"d3"', '"d33"')
    (tmp_path / "other.jsonl").write_text(rows)
    with pytest.raises(MismatchError, match="has no document 'd33'"):
        app.train(config(folder, tmp_path / "run", corpus={"sources": [{"path": str(tmp_path / "other.jsonl")}]}))
    (tmp_path / "other.jsonl").write_text(rows.replace('"d33"', '"d3"').replace("river", "River", 1))
    with pytest.raises(MismatchError, match="document 'd0' has other tokens"):
        app.train(config(folder, tmp_path / "run", corpus={"sources": [{"path": str(tmp_path / "other.jsonl")}]}))
    with pytest.raises(ConfigError, match="model.chunk_length is 16"):
        app.train(config(folder, tmp_path / "run", model={"chunk_length": 16}, batch={"chunks": 2}))
    with pytest.raises(ConfigError, match=r"retrieval\.folder: .* holds snapshot .*, the run is of abc"):
        app.train(config(folder, tmp_path / "run", retrieval={"snapshot": "abc"}))
    other = byte_tokenizer()
    other._raw.add_special_tokens(["<|more|>"])
    other.save(tmp_path / "tokenizer")
    with pytest.raises(MismatchError, match=r"vocab_size: corpus\.tokenizer has 258, the snapshot in .*book has 257"):
        app.train(
            config(
                folder, tmp_path / "run", corpus={"tokenizer": str(tmp_path / "tokenizer")}, model={"vocab_size": 258}
            )
        )


@pytest.mark.parametrize(
    ("retrieval", "message"),
    [
        ({"cache": "c"}, "a cache holds ids; name it and the folder"),
        ({"address": "here"}, "name a retriever's address and the database, or a cache and a folder"),
    ],
)
def test_settings_that_cannot_be(folder: Path, tmp_path: Path, retrieval: dict[str, Any], message: str) -> None:
    values = settings(folder, out=str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        TrainConfig.parse({**values, "retrieval": retrieval})


def test_a_corpus_that_shares_no_document_must_be_meant(folder: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    source = write_rows(tmp_path / "rows.jsonl", [{"id": "elsewhere", "text": "river capital north"}])
    book = Snapshot.open(folder / "book")
    corpus = ChunkedCorpus([("elsewhere", tokenizer.encode("river capital north"))], tokenizer, M)
    make = partial(TextCorpus, [Source(path=source)], tokenizer=tokenizer, chunk_length=M)
    find_neighbours(make, book, HashEncoder(), tmp_path / "cache")
    with pytest.raises(ConfigError, match="none of 1 documents of the corpus is in snapshot"):
        CachedSource(tmp_path / "cache", folder / "book", 2, [corpus])
    CachedSource(tmp_path / "cache", folder / "book", 2, [corpus], exclude_own=False)


def test_another_cache_is_another_run(folder: Path, tmp_path: Path) -> None:
    run = config(folder, tmp_path / "run")
    assert checkpoint.settings_of(run, "corpus", "one") != checkpoint.settings_of(run, "corpus", "two")
    live = TrainConfig.parse(settings(folder))
    assert "cache" not in checkpoint.settings_of(live, "corpus")["retrieval"]
