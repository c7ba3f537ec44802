"""Builds from a base: what a full build of the new corpus gives, for the price of what changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openbook_core.errors import ConfigError, CorruptError, InputError, NotFoundError
from openbook_database.build import run
from openbook_database.build.engine import LocalEngine
from openbook_database.build.run import BuildResult, build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.manifest import Manifest
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder, build_tiny_snapshot, tiny_rows, tiny_tokenizer, tree, write_rows
from openbook_database.verify import verify

Row = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def without_flushing() -> Iterator[None]:
    """Flushing takes most of a tiny build's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


class Counting(HashEncoder):
    """Counts the passages that it is given."""

    def __init__(self, dimension: int = 16) -> None:
        super().__init__(dimension)
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.seen += texts
        return super().encode(texts)


def build_like(snapshot: Path, rows: Sequence[Row], monkeypatch: pytest.MonkeyPatch, **settings: Any) -> BuildResult:
    """A full build of `rows` whose shards have the borders of those of `snapshot`."""
    ranges = [(shard.first_document, shard.end_document) for shard in Manifest.read(snapshot).shards]
    with monkeypatch.context() as patch:
        patch.setattr(run, "split_documents", lambda document_rows, shards: ranges)
        return build_tiny_snapshot(snapshot.parent / "full" / snapshot.name, rows=rows, **settings)


def require_equal(incremental: Path, full: Path) -> None:
    """All files the same bytes; the manifests differ in the base alone."""
    first, second = tree(incremental), tree(full)
    manifests = [Manifest.read(incremental), Manifest.read(full)]
    del first["manifest.json"], second["manifest.json"]
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    recipe = {key: value for key, value in manifests[0].recipe.items() if key != "base"}
    assert replace(manifests[0], recipe=recipe).to_bytes() == manifests[1].to_bytes()


def edited(rows: Sequence[Row], changes: dict[int, str], added: Sequence[Row] = ()) -> list[Row]:
    """`rows` with some removed, of another text, title or licence, by number; then the `added` ones."""
    found = []
    for number, row in enumerate(rows):
        match changes.get(number):
            case "removed":
                continue
            case "text":
                found.append({**row, "text": row["text"] + " More words stand here now."})
            case "title":
                found.append({**row, "title": row["title"] + " again"})
            case "licence":
                found.append({**row, "licence": "CC0"})
            case _:
                found.append(row)
    return [*found, *added]


def test_recall_is_measured_again_once_two_in_a_hundred_rows_have_changed(tmp_path: Path) -> None:
    rows = [{"id": f"{number:03d}", "text": f"word{number} and"} for number in range(200)]
    before = build_tiny_snapshot(tmp_path / "0", rows=rows, index="IVF4,SQ8", chunk_length=64).path
    measured = Manifest.read(before).index
    for step, changed in enumerate((2, 4, None)):  # a row that is another is one that went and one that came, of 200
        rows[10 + step] = {"id": f"{10 + step:03d}", "text": f"other{step} words"}
        name = str(step + 1)
        after = build_tiny_snapshot(tmp_path / name, rows=rows, index="IVF4,SQ8", chunk_length=64, base=before).path
        verify(after)
        index = Manifest.read(after).index
        assert index.recall.get("changed") == changed
        if changed is not None:
            assert index == replace(measured, recall={**measured.recall, "changed": changed})
        before = after
    assert Manifest.read(before).index.trained_on == measured.trained_on


@pytest.mark.parametrize("shards", [1, 3])
@settings(
    max_examples=6, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_edits_give_what_a_full_build_gives(
    shards: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("edits")
    rows = tiny_rows(data.draw(st.integers(1, 14)), seed=data.draw(st.integers(0, 3)), words=60)
    kinds = st.sampled_from(["removed", "text", "title", "licence"])
    changes = data.draw(st.dictionaries(st.integers(0, len(rows) - 1), kinds, max_size=5))
    fresh = data.draw(st.lists(st.integers(0, 999), max_size=3, unique=True))
    added = [{"id": f"doc/{number:04d}-x", "title": "New", "text": f"New words, {number} of them."} for number in fresh]
    after = data.draw(st.permutations(edited(rows, changes, added)))
    if not after:
        after = [{"id": "only", "text": "words"}]
    base = build_tiny_snapshot(folder / "base", rows=rows, shards=shards)
    made = build_tiny_snapshot(folder / "new", rows=after, shards=shards, base=base.path)
    full = build_like(made.path, after, monkeypatch, shards=shards)
    require_equal(made.path, full.path)
    verify(made.path)
    queries_QD = HashEncoder().encode([str(row["text"]) for row in [*rows, *after]])
    plain = build_tiny_snapshot(folder / "plain", rows=after)
    found, wanted = (Snapshot.open(path).search(queries_QD, 7) for path in (made.path, plain.path))
    np.testing.assert_array_equal(found.ids_QK, wanted.ids_QK)
    np.testing.assert_array_equal(found.scores_QK, wanted.scores_QK)


ROWS = tiny_rows(30, seed=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_snapshot(tmp_path_factory.mktemp("base") / "base", rows=ROWS, shards=3).path


def in_order(shard: int, base: Path) -> list[int]:
    """Places in ROWS of the documents of a shard of `base`."""
    entry, documents = Manifest.read(base).shards[shard], Snapshot.open(base).documents
    ids = [documents.record(number).external_id for number in range(entry.first_document, entry.end_document)]
    return [place for place, row in enumerate(ROWS) if row["id"] in ids]


def test_only_what_changed_is_tokenised_and_encoded(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised: list[str] = []
    chunk_document = run.run_chunk_stage.__globals__["chunk_document"]
    monkeypatch.setitem(
        run.run_chunk_stage.__globals__,
        "chunk_document",
        lambda text, *others: (tokenised.append(text), chunk_document(text, *others))[1],
    )
    monkeypatch.setattr("openbook_database.testing.HashEncoder", Counting)
    first, second, *_ = in_order(1, base)
    after = edited(ROWS, {first: "text", second: "licence"}, [{"id": "doc/0500-y", "text": "A page that is new."}])
    made = build_tiny_snapshot(tmp_path / "new", rows=after, shards=3, base=base)
    assert sorted(tokenised) == sorted([ROWS[first]["text"] + " More words stand here now.", "A page that is new."])
    whole = Snapshot.open(made.path)
    changed = [whole.documents.number(name) for name in (ROWS[first]["id"], "doc/0500-y")]
    rows = sum(whole.documents.record(number).rows for number in changed if number is not None)
    assert made.shared == {"documents": 29, "chunks": made.chunks - rows, "shards": 2}
    assert whole.documents.record(whole.documents.number(ROWS[second]["id"]) or 0).licence == "CC0"


def test_files_of_unchanged_shards_are_the_bases_own(base: Path, tmp_path: Path) -> None:
    after = edited(ROWS, {in_order(1, base)[0]: "text"})
    made = build_tiny_snapshot(tmp_path / "new", rows=after, shards=3, base=base)
    for shard, shared in ((0, True), (1, False), (2, True)):
        files = list((base / f"shard-{shard:05d}").iterdir())
        assert len(files) == 5
        for file in files:
            assert file.samefile(made.path / file.parent.name / file.name) == shared, file
    assert not (base / "documents.arrow").samefile(made.path / "documents.arrow")


def test_a_shard_that_has_become_empty_is_left_out(base: Path, tmp_path: Path) -> None:
    after = edited(ROWS, dict.fromkeys(in_order(1, base), "removed"))
    made = build_tiny_snapshot(tmp_path / "new", rows=after, shards=3, base=base)
    assert made.shards == 2
    assert made.notes == ("2 shards were made instead of 3: the others have become empty",)
    assert (base / "shard-00002" / "lists.faiss").samefile(made.path / "shard-00001" / "lists.faiss")
    verify(made.path)
    # and from such a base: what comes where the empty shard was goes to the shard before.
    again = build_tiny_snapshot(tmp_path / "again", rows=ROWS, shards=3, base=made.path)
    assert (again.shards, again.documents, again.shared["shards"]) == (2, 30, 1)
    verify(again.path)


def test_nothing_changed(base: Path, tmp_path: Path) -> None:
    made = build_tiny_snapshot(tmp_path / "new", rows=ROWS, shards=3, base=base)
    assert made.shared == {"documents": 30, "chunks": made.chunks, "shards": 3}
    assert made.snapshot_id != Manifest.read(base).snapshot_id
    again = build_tiny_snapshot(tmp_path / "new", rows=ROWS, shards=3, base=base)
    assert again.reused


def test_links_that_cannot_be_made_are_copies(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    after = edited(ROWS, {in_order(1, base)[0]: "text"})
    linked = build_tiny_snapshot(tmp_path / "linked" / "new", rows=after, shards=3, base=base)
    monkeypatch.setattr(os, "link", refuse)
    copied = build_tiny_snapshot(tmp_path / "copied" / "new", rows=after, shards=3, base=base)
    assert linked.snapshot_id == copied.snapshot_id
    assert tree(linked.path) == tree(copied.path)
    assert all(path.stat().st_nlink == 1 for path in copied.path.rglob("*") if path.is_file())


def test_several_processes_write_the_shards_from_a_base(base: Path, tmp_path: Path) -> None:
    after = edited(ROWS, {in_order(1, base)[0]: "text", in_order(2, base)[0]: "removed"})
    source = write_rows(tmp_path / "new.jsonl", after)
    build_snapshot(
        [source],
        tmp_path / "several",
        database="tiny",
        tokenizer=tiny_tokenizer(),
        encoder=HashEncoder(),
        settings=BuildSettings(chunk_length=16, shards=3, embed_block=32, chunk_block=32),
        base=base,
        engine=LocalEngine(workers=2),
    )
    alone = build_tiny_snapshot(tmp_path / "new", rows=after, shards=3, base=base)
    assert tree(tmp_path / "several") == tree(alone.path)


def test_growth_that_lands_in_one_shard_is_noted(base: Path, tmp_path: Path) -> None:
    many = [{"id": f"zz{number}", "text": "words " * 300} for number in range(20)]
    made = build_tiny_snapshot(tmp_path / "new", rows=[*ROWS, *many], shards=3, base=base)
    assert len(made.notes) == 1
    assert made.notes[0].startswith("shard 2 holds")
    assert "a build without a base divides them anew" in made.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_length": 8}, r"settings\.chunk_length: was 16, now 8"),
        ({"passage_template": "{text}"}, r"settings\.passage_template: was .* now \"\{text\}\""),
        ({"shards": 2, "keep_vectors": False}, r"keep_vectors: was true, now false; settings\.shards: was 3, now 2"),
        ({"dimension": 8}, r"encoder\.dimension: was 16, now 8; encoder\.fingerprint\.dimension: was 16, now 8"),
        ({"database": "other"}, r'database: was "tiny", now "other"'),
    ],
)
def test_a_base_that_was_built_otherwise_is_refused(
    base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"cannot be the base, it was built otherwise: .*{message}.*without a base"):
        build_tiny_snapshot(tmp_path / "new", rows=ROWS, base=base, **{"shards": 3, **changes})
    assert not (tmp_path / "new.building").exists()


def test_another_compute_type_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HashEncoder, "dtype", "bfloat16")
    with pytest.raises(ConfigError, match=r'encoder\.dtype: was "float32", now "bfloat16"'):
        build_tiny_snapshot(tmp_path / "new", rows=ROWS, shards=3, base=base)


def test_another_base_is_another_build(base: Path, tmp_path: Path) -> None:
    other = build_tiny_snapshot(tmp_path / "other", rows=ROWS[:9], shards=3).path
    build_tiny_snapshot(tmp_path / "new", rows=ROWS, shards=3, base=base)
    with pytest.raises(ConfigError, match=r"base: was .*, now "):
        build_tiny_snapshot(tmp_path / "new", rows=ROWS, shards=3, base=other)
    with pytest.raises(ConfigError, match=r"base: was .*, now null"):
        build_tiny_snapshot(tmp_path / "new", rows=ROWS, shards=3)


def test_a_base_that_cannot_be_used_is_named(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"

    def refused(error: type[Exception], message: str, out: str = "new") -> None:
        with pytest.raises(error, match=message):
            build_tiny_snapshot(tmp_path / out, rows=edited(ROWS, {0: "text"}), shards=3, base=copy)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(base, copy)

    refused(NotFoundError, "copy holds no snapshot")
    refused(InputError, "copy is the base itself", out="copy")
    (copy / "shard-00002" / "tokens.bin").unlink()
    refused(CorruptError, r"shard-00002/tokens\.bin: is missing")
    flip(copy / "documents.arrow")
    refused(CorruptError, r"documents\.arrow: checksum")
    record = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**record, "format_version": 3}))
    refused(CorruptError, "version 3, this program reads version 2: use a newer Openbook")
    changed = next(shard for shard in range(3) if 0 in in_order(shard, base))
    for name in ("tokens.bin", "lengths.bin", "lists.faiss"):
        flip(copy / f"shard-{changed:05d}" / name)
        refused(CorruptError, rf"shard-0000{changed}/{name}: checksum")
        shutil.rmtree(tmp_path / "new.building", ignore_errors=True)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(data)


def test_beside_a_lossy_index_the_kept_float16_vectors_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openbook_database.testing.HashEncoder", Counting)
    settings: dict[str, Any] = {"shards": 3, "index": "IVF2,SQ8"}
    base = build_tiny_snapshot(tmp_path / "base", rows=ROWS, **settings).path
    changed = in_order(1, base)[0]
    after = edited(ROWS, {changed: "text"})
    made = build_tiny_snapshot(tmp_path / "new", rows=after, base=base, **settings)
    snapshot = Snapshot.open(made.path)
    number = snapshot.documents.number(str(ROWS[changed]["id"]))
    assert made.shared == {
        "documents": 29,
        "chunks": made.chunks - snapshot.documents.record(number or 0).rows,
        "shards": 2,
    }
    assert (base / "quantiser.faiss").samefile(made.path / "quantiser.faiss")
    assert (base / "shard-00000" / "places.bin").samefile(made.path / "shard-00000" / "places.bin")
    entry = snapshot.manifest.shards[1]
    ids = np.arange(entry.first_row, entry.end_row)
    full_ND = HashEncoder().encode(passages(snapshot, ids))
    kept_ND = np.fromfile(made.path / "shard-00001" / "vectors.f16", "<f2").reshape(-1, 16)
    np.testing.assert_array_equal(kept_ND, full_ND.astype(np.float16))
    np.testing.assert_allclose(snapshot.shards[1].vectors(ids), full_ND, atol=0.02)
    verify(made.path)
    recall = snapshot.manifest.index.recall
    assert recall["chosen"] >= 0.95
    assert recall["measured"] != Manifest.read(base).index.recall["measured"]


def passages(snapshot: Snapshot, ids: NDArray[np.int64]) -> list[str]:
    titles = [snapshot.documents.record(int(number)).title for number in snapshot.documents.of_rows(ids)]
    texts = [snapshot.shard_of(int(chunk)).text(np.asarray([chunk]))[0] for chunk in ids]
    return [f"{title}: {text}" for title, text in zip(titles, texts, strict=True)]


def test_without_any_vectors_changed_shards_are_encoded_again(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"shards": 3, "index": "IVF2,SQ8", "keep_vectors": False}
    base = build_tiny_snapshot(tmp_path / "base", rows=ROWS, **settings).path
    changed = max(in_order(1, base), key=lambda number: len(ROWS[number]["text"]))
    made = build_tiny_snapshot(tmp_path / "new", rows=edited(ROWS, {changed: "text"}), base=base, **settings)
    entry = Manifest.read(made.path).shards[1]
    assert made.shared == {"documents": 29, "chunks": made.chunks - entry.rows, "shards": 2}
    snapshot = Snapshot.open(made.path)
    ids = np.arange(entry.first_row, entry.end_row)
    full_ND = HashEncoder().encode(passages(snapshot, ids))
    np.testing.assert_allclose(snapshot.shards[1].vectors(ids), full_ND, atol=0.02)
    # Nothing exact is left to measure by, however many rows have come and gone.
    before, rows = Snapshot.open(base), 0
    for each in (before, snapshot):
        number = each.documents.number(str(ROWS[changed]["id"]))
        assert number is not None
        rows += each.documents.record(number).rows
    assert rows > 0.02 * made.chunks
    index = before.manifest.index
    assert snapshot.manifest.index == replace(index, recall={**index.recall, "changed": rows})
    verify(made.path)
    again = build_tiny_snapshot(tmp_path / "again", rows=ROWS, base=made.path, **settings)
    assert Manifest.read(again.path).index.recall["changed"] == 2 * rows


@pytest.mark.parametrize("index", ["HNSW8", "IVF2,Flat"])
def test_indexes_that_hold_float32_need_no_kept_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    settings: dict[str, Any] = {"shards": 3, "index": index, "keep_vectors": False}
    base = build_tiny_snapshot(tmp_path / "base", rows=ROWS, **settings).path
    after = edited(ROWS, {in_order(1, base)[0]: "text"})
    made = build_tiny_snapshot(tmp_path / "new", rows=after, base=base, **settings)
    full = build_like(made.path, after, monkeypatch, **settings)
    verify(made.path)
    ours, theirs = tree(made.path), tree(full.path)
    differ = {name for name in ours if ours[name] != theirs[name]}
    # The full build trains anew, and so divides its lists in another way.
    assert differ == {"manifest.json"} or index.startswith("IVF")
    snapshot, other = Snapshot.open(made.path), Snapshot.open(full.path)
    for shard, same in zip(snapshot.shards, other.shards, strict=True):
        ids = np.arange(shard.entry.first_row, shard.entry.end_row)
        np.testing.assert_array_equal(shard.vectors(ids), same.vectors(ids))


def test_a_corpus_that_has_outgrown_its_quantiser_is_noted(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"index": "IVF2,SQ8"}
    base = build_tiny_snapshot(tmp_path / "base", rows=ROWS[:8], **settings)
    more = build_tiny_snapshot(tmp_path / "more", rows=ROWS[:13], base=base.path, **settings)
    assert more.notes == ()
    most = build_tiny_snapshot(tmp_path / "most", rows=ROWS, base=more.path, **settings)
    assert (base.path / "quantiser.faiss").samefile(most.path / "quantiser.faiss")
    assert any(f"was trained when there were {base.chunks} chunks" in note for note in most.notes)


@pytest.mark.parametrize("cleaning", ["exact", "near"])
def test_cleaning_looks_at_documents_of_the_base_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cleaning: str
) -> None:
    """A copy of a document that is as it was in the base, and so is not tokenised again unless tokens are compared."""
    settings: dict[str, Any] = {"shards": 3, "cleaning": {"dedup": cleaning}}
    base = build_tiny_snapshot(tmp_path / "base", rows=ROWS, **settings).path
    text = str(ROWS[5]["text"]) + (" And one word." if cleaning == "near" else "")
    after = [*edited(ROWS, {in_order(1, base)[0]: "removed"}), {"id": "zz", "text": text}]
    made = build_tiny_snapshot(tmp_path / "new", rows=after, base=base, **settings)
    full = build_like(made.path, after, monkeypatch, **settings)
    assert made.removed == full.removed == {f"{cleaning} duplicate": 1}
    require_equal(made.path, full.path)
    assert made.shared["shards"] == 2
    report = made.path.with_name("new.report.jsonl")
    assert report.read_bytes() == full.path.with_name("new.report.jsonl").read_bytes()


def test_bad_lines_and_counts_are_those_of_a_full_build(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*edited(ROWS, {3: "removed"}), {"id": "none", "text": "  "}, {"id": "x", "text": "words", "licence": "MIT"}]
    made = build_tiny_snapshot(tmp_path / "new", rows=rows, shards=3, base=base, skip_bad_lines=True)
    full = build_like(made.path, rows, monkeypatch, shards=3, skip_bad_lines=True)
    assert made.skipped == full.skipped == {"empty text": 1}
    require_equal(made.path, full.path)
