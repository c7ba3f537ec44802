"""The neighbour cache against brute force in numpy; what is left out; killed and resumed; refused where it does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from openbook_cli import neighbours as verb
from openbook_cli.main import app
from openbook_core.errors import ConfigError, ConflictError, CorruptError, InputError, MismatchError, NotFoundError
from openbook_database.build.progress import Update
from openbook_database.neighbours import NeighbourCache
from openbook_database.neighbours.corpus import Corpus, SnapshotCorpus, TextCorpus
from openbook_database.neighbours.find import Found, find_neighbours
from openbook_database.reader import Source
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder, build_tiny_snapshot, tiny_rows, tiny_tokenizer, tree, write_rows

sys.path.insert(0, str(Path(__file__).parent))
from megatron_files import write_megatron

M = 16


class RoleEncoder(HashEncoder):
    """Queries get other vectors than passages, so that a wrong role shows."""

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.encode([f"asks {text} now" for text in texts])


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    out = tmp_path_factory.mktemp("book") / "book"
    build_tiny_snapshot(out, documents=20, shards=3, chunk_length=M)
    return Snapshot.open(out)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents in another order than the snapshot's, with one that it has not and a blank chunk."""
    found = [*tiny_rows(20)[::-2], {"id": "new", "title": "New", "text": "Kinda new. " + " " * 200 + "ka1 lo2 the3"}]
    return write_rows(tmp_path_factory.mktemp("rows") / "corpus.jsonl", found)


def text_corpus(rows: Path, book: Snapshot) -> Any:
    return lambda folder: TextCorpus([Source(path=rows)], folder, book.tokenizer, M)


def find(make: Any, book: Snapshot, out: Path, **options: Any) -> Found:
    return find_neighbours(make, book, RoleEncoder(), out, **{"block_chunks": 32, **options})


def brute_force(
    corpus: Corpus, book: Snapshot, k: int, max_score: float | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Scores of all pairs in float64, whole documents struck out, sorted by score and id."""
    documents, chunks = corpus.documents, corpus.documents.chunks
    vectors_ND = np.concatenate(
        [shard.vectors(np.arange(shard.entry.first_row, shard.entry.end_row)) for shard in book.shards]
    )
    texts = corpus.texts(0, chunks)
    queries_CD = RoleEncoder().encode_queries(texts)
    scores_CN = (queries_CD.astype(np.float64) @ vectors_ND.astype(np.float64).T).astype(np.float32)
    of_N = book.documents.of_rows(np.arange(len(vectors_ND)))
    ids, scores = np.full((chunks, k), -1), np.zeros((chunks, k), np.float32)
    for chunk in range(chunks):
        if not texts[chunk].strip():
            continue
        place = int(np.searchsorted(documents.firsts, chunk, side="right")) - 1
        out_N = of_N == (-1 if (own := book.documents.number(documents.ids[place])) is None else own)
        if max_score is not None:
            out_N |= np.isin(of_N, of_N[(scores_CN[chunk] > max_score) & ~out_N])
        order = sorted(np.flatnonzero(~out_N).tolist(), key=lambda row: (-scores_CN[chunk, row], row))[:k]
        ids[chunk, : len(order)], scores[chunk, : len(order)] = order, scores_CN[chunk, order]
    return ids, scores


@pytest.mark.parametrize("max_score", [None, 0.7])
def test_neighbours_are_those_of_brute_force(
    book: Snapshot, rows: Path, tmp_path: Path, max_score: float | None
) -> None:
    found = find(text_corpus(rows, book), book, tmp_path / "cache", k=5, max_score=max_score)
    cache = NeighbourCache.open(tmp_path / "cache", corpus_digest=found.corpus_digest, snapshot_id=book.id)
    corpus = text_corpus(rows, book)(tmp_path / "again")
    ids, scores = brute_force(corpus, book, 5, max_score)
    assert (cache.ids_CK == ids).all()
    np.testing.assert_allclose(cache.scores_CK, scores, rtol=2e-6)
    assert (found.known_documents, found.documents) == (10, 11)
    assert found.missing == int((ids == -1).sum()) > 0, "a blank chunk has none"
    if max_score is not None:
        assert (brute_force(corpus, book, 5)[0] != ids).any(), "the threshold left something out"
        assert not (cache.scores_CK > max_score).any()


def test_a_snapshot_as_its_own_corpus(book: Snapshot, tmp_path: Path) -> None:
    found = find(lambda folder: SnapshotCorpus(book), book, tmp_path / "cache", k=3)
    cache = NeighbourCache.open(tmp_path / "cache")
    assert (cache.ids_CK == brute_force(SnapshotCorpus(book), book, 3)[0]).all()
    own_C = book.documents.of_rows(np.arange(book.manifest.chunks))
    near_CK = np.where(cache.ids_CK < 0, -1, book.documents.of_rows(cache.ids_CK))
    assert not (near_CK == own_C[:, None]).any()
    assert found.known_documents == 20
    # The same documents as JSON Lines are the same corpus, but for their order.
    source = write_rows(tmp_path / "rows.jsonl", sorted(tiny_rows(20), key=lambda row: str(row["id"]).encode()))
    again = find(text_corpus(source, book), book, tmp_path / "other", k=3)
    assert again.corpus_digest == found.corpus_digest
    assert tree(tmp_path / "other") == tree(tmp_path / "cache")


def test_the_command_takes_every_format_of_a_build(
    book: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenised dataset of Megatron, named in a list with its tokenizer, is the corpus that its texts are."""
    monkeypatch.setattr(verb, "load_encoder", lambda *given: RoleEncoder())
    tiny_tokenizer().save(tmp_path / "tokenizer")
    texts = [str(row["text"]) for row in tiny_rows(6)]
    write_megatron(tmp_path / "corpus", [[tiny_tokenizer().encode(text).tolist()] for text in texts], 8)
    (tmp_path / "list.yaml").write_text("sources: [{path: corpus, tokenizer: %s}]" % (tmp_path / "tokenizer"))
    write_rows(tmp_path / "1.rows", [{"key": f"corpus:{n}", "body": text} for n, text in enumerate(texts[:4])])
    write_rows(tmp_path / "2.rows", [{"key": f"corpus:{n + 4}", "body": text} for n, text in enumerate(texts[4:])])

    def run(out: str, *options: object) -> Any:
        command = ["db", "neighbours", "--database", book.path, "--out", tmp_path / out, "--k", 3, *options]
        return CliRunner().invoke(app, [str(each) for each in command])

    rows = ("--corpus", tmp_path / "*.rows", "--text-field", "body", "--id-field", "key", "--max-score", 0.7)
    for out, options in (("lines", rows), ("tokens", ("--sources", tmp_path / "list.yaml", "--max-score", 0.7))):
        done = run(out, *options)
        assert done.exit_code == 0, done.output
        assert "of 6 documents (0 of them in the snapshot" in done.stdout
        assert "no document of the corpus is in the snapshot under its id" in done.stderr
    assert tree(tmp_path / "tokens") == tree(tmp_path / "lines")
    assert not (NeighbourCache.open(tmp_path / "tokens").scores_CK > 0.7).any()
    for options, message in (((), "no corpus was given"), (("--corpus", tmp_path / "*.gone"), "no file matches")):
        refused = run("none", *options)
        assert isinstance(refused.exception, InputError) and message in str(refused.exception)
    assert not (tmp_path / "none.building").exists()


def test_fewer_chunks_than_wanted_are_marked(tmp_path: Path) -> None:
    build_tiny_snapshot(tmp_path / "book", documents=1, chunk_length=M)
    book = Snapshot.open(tmp_path / "book")
    found = find(lambda folder: SnapshotCorpus(book), book, tmp_path / "cache")
    cache = NeighbourCache.open(tmp_path / "cache")
    assert (cache.ids_CK == -1).all() and not cache.scores_CK.any()
    assert found.missing == 2 * found.chunks


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_database_neighbours import find, text_corpus
from openbook_database.snapshot import Snapshot

left = int(sys.argv[5])
sync = os.fsync

def event(descriptor):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)

os.fsync = event
book = Snapshot.open(sys.argv[2])
find(text_corpus(Path(sys.argv[3]), book), book, Path(sys.argv[4]))
"""


@pytest.mark.parametrize(("syncs", "blocks_left"), [(3, 7), (9, 7), (14, 5), (20, 4)])
def test_killed_and_gone_on_with_it_is_the_same_bytes(
    book: Snapshot, rows: Path, tmp_path: Path, syncs: int, blocks_left: int
) -> None:
    find(text_corpus(rows, book), book, tmp_path / "expected")
    arguments = [str(Path(__file__).parent), str(book.path), str(rows), str(tmp_path / "cache"), str(syncs)]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=300, check=False).returncode == -9
    assert not (tmp_path / "cache").exists()
    seen: list[Update] = []
    find(text_corpus(rows, book), book, tmp_path / "cache", progress=seen.append)
    assert tree(tmp_path / "cache") == tree(tmp_path / "expected")
    assert len(seen) == blocks_left
    assert [update.seconds_left == 0 for update in seen] == [False] * (blocks_left - 1) + [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "expected"]
    assert find(text_corpus(rows, book), book, tmp_path / "cache").reused


def test_a_cache_that_does_not_fit_is_refused_by_name(book: Snapshot, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    found = find(text_corpus(rows, book), book, out)
    with pytest.raises(MismatchError, match=f"found for corpus {found.corpus_digest}, this is corpus abc"):
        NeighbourCache.open(out, corpus_digest="abc")
    with pytest.raises(MismatchError, match=f"found for snapshot {book.id}, this is snapshot abc"):
        NeighbourCache.open(out, snapshot_id="abc")
    cache = NeighbourCache.open(out)
    name, digest = cache.documents.ids[3], cache.documents.digests[3]
    assert cache.first_chunk(name, digest) == sum(cache.documents.counts[:3])
    with pytest.raises(MismatchError, match=f"document '{name}' has other tokens"):
        cache.first_chunk(name, b"other")
    with pytest.raises(MismatchError, match="has no document 'unheard'"):
        cache.first_chunk("unheard", digest)
    with pytest.raises(NotFoundError, match="holds no neighbour cache"):
        NeighbourCache.open(tmp_path)
    with pytest.raises(ConfigError, match=r"made otherwise: k: was 2, now 4"):
        find(text_corpus(rows, book), book, out, k=4)
    with pytest.raises(InputError, match="exists and is no neighbour cache"):
        find(text_corpus(rows, book), book, book.path)
    data = bytearray((out / "ids.i64").read_bytes())
    data[8] ^= 1
    (out / "ids.i64").write_bytes(data)
    with pytest.raises(CorruptError, match=r"ids\.i64: checksum"):
        NeighbourCache.open(out)
    (out / "neighbours.json").write_text(json.dumps({"format": "openbook-neighbours", "format_version": 99}))
    with pytest.raises(CorruptError, match="has format version 99"):
        NeighbourCache.open(out)


def test_another_encoder_other_settings_and_another_run_are_refused(book: Snapshot, rows: Path, tmp_path: Path) -> None:
    make, out = text_corpus(rows, book), tmp_path / "cache"
    with pytest.raises(MismatchError, match="dimension: the encoder given has 8, the snapshot has 16"):
        find_neighbours(make, book, HashEncoder(8), out)

    class Spoiled(HashEncoder):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return np.roll(super().encode(texts), 1, axis=1)

    with pytest.raises(MismatchError, match="has the fingerprint of the snapshot but other vectors: probe text"):
        find_neighbours(make, book, Spoiled(), out)

    def interrupt(update: Update) -> None:
        with pytest.raises(ConflictError, match="another run writes into"):
            find(make, book, out)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(make, book, out, progress=interrupt)
    with pytest.raises(ConfigError, match=r"begun otherwise: max_score: was null, now 0\.9"):
        find(make, book, out, max_score=0.9)
