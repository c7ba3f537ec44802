"""A built snapshot against its source: tokens, text, documents, search; and every way in which it can be damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openbook_core.errors import ArgumentError, CorruptError, NotFoundError
from openbook_database import files
from openbook_database.inspect import inspect
from openbook_database.manifest import Manifest
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder, build_tiny_snapshot, tiny_rows, tiny_tokenizer
from openbook_database.verify import verify

M = 16
ROWS = [
    {**row, "region": f"r{number % 3}", "uri": f"http://x/{number}", "licence": "CC0"}
    for number, row in enumerate(tiny_rows(23, seed=1))
] + [
    {"id": "one", "text": "x"},
    {"id": "copy/1", "text": "the same words twice"},
    {"id": "copy/2", "text": "the same words twice"},
    {"id": "Ä", "text": "東京" * 40, "title": "Tōkyō"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("snapshots")
    for shards in (1, 2, 3, 7):
        build_tiny_snapshot(root / str(shards), rows=ROWS, shards=shards, fields={"metadata": ("region",)})
    return {shards: root / str(shards) for shards in (1, 2, 3, 7)}


@pytest.fixture(scope="module")
def snapshot(folders: dict[int, Path]) -> Snapshot:
    return Snapshot.open(folders[3], "full")


def ids_of(snapshot: Snapshot, number: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.arange(snapshot.shards[number].entry.first_row, snapshot.shards[number].entry.end_row)


def test_documents_are_in_the_order_of_their_ids(snapshot: Snapshot) -> None:
    found = [snapshot.documents.record(number) for number in range(len(snapshot.documents))]
    by_id = {str(row["id"]): row for row in ROWS}
    assert [record.external_id for record in found] == sorted(by_id, key=str.encode)
    for record in found:
        row = by_id[record.external_id]
        assert (record.title, record.uri, record.licence) == (row.get("title"), row.get("uri"), row.get("licence"))
        assert record.metadata == ({"region": row["region"]} if "region" in row else {})


def test_rows_hold_the_tokens_of_each_document(snapshot: Snapshot) -> None:
    tokenizer = tiny_tokenizer()
    by_id = {str(row["id"]): str(row["text"]) for row in ROWS}
    seen = 0
    for shard in snapshot.shards:
        ids = ids_of(snapshot, shard.number)
        tokens_N2M, lengths_N2 = shard.tokens(ids)
        numbers = shard.document_numbers(ids)
        np.testing.assert_array_equal(numbers, snapshot.documents.of_rows(ids))
        texts, nexts = shard.text(ids), shard.continuation_text(ids)
        for number in np.unique(numbers):
            record = snapshot.documents.record(int(number))
            places = np.flatnonzero(numbers == number)
            assert (len(places), ids[places[0]]) == (record.rows, record.first_row)
            source = by_id[record.external_id]
            tokens = [tokens_N2M[place, : lengths_N2[place, 0]] for place in places]
            np.testing.assert_array_equal(np.concatenate(tokens), tokenizer.encode(source))
            assert "".join(texts[place] for place in places) == source
            for place in places:
                last = place == places[-1]
                assert lengths_N2[place, 1] == (0 if last else lengths_N2[place + 1, 0])
                np.testing.assert_array_equal(tokens_N2M[place, M:], 0 if last else tokens_N2M[place + 1, :M])
                assert nexts[place] == ("" if last else texts[place + 1])
            seen += 1
    assert seen == len(ROWS) == snapshot.manifest.documents


def test_every_shard_count_gives_the_same_chunks_and_answers(folders: dict[int, Path]) -> None:
    opened = {shards: Snapshot.open(folder) for shards, folder in folders.items()}
    queries_QD = np.concatenate(
        [HashEncoder().encode([str(row["text"])[:60] for row in ROWS]), np.zeros((1, 16), np.float32)]
    )
    exclude = [{number % len(ROWS), 3} for number in range(len(queries_QD))]
    one = opened[1].search(queries_QD, 9, exclude)
    assert len({snapshot.id for snapshot in opened.values()}) == 4
    for shards, snapshot in opened.items():
        assert len(snapshot.shards) == shards
        hits = snapshot.search(queries_QD, 9, exclude)
        np.testing.assert_array_equal(hits.ids_QK, one.ids_QK)
        np.testing.assert_array_equal(hits.scores_QK, one.scores_QK)
        for found, numbers in zip(hits.ids_QK, exclude, strict=True):
            assert not numbers & set(snapshot.documents.of_rows(found[found >= 0]).tolist())
        assert [t for shard in snapshot.shards for t in shard.text(ids_of(snapshot, shard.number))] == opened[1].shards[
            0
        ].text(np.arange(snapshot.manifest.chunks))


def test_vectors_are_those_of_the_passages(snapshot: Snapshot) -> None:
    shard = snapshot.shards[1]
    ids = ids_of(snapshot, 1)
    titles = [snapshot.documents.record(int(n)).title for n in shard.document_numbers(ids)]
    passages = [f"{title}: {text}" if title else text for title, text in zip(titles, shard.text(ids), strict=True)]
    expected_ND = HashEncoder().encode(passages)
    np.testing.assert_array_equal(shard.vectors(ids), expected_ND)
    stored = np.fromfile(snapshot.path / "shard-00001/vectors.f16", "<f2").reshape(-1, 16)
    np.testing.assert_array_equal(stored, expected_ND.astype(np.float16))


def test_ids_of_documents_are_looked_up_and_unknown_ones_counted(snapshot: Snapshot) -> None:
    numbers, unknown = snapshot.documents.numbers(["one", "Ä", "nothing", "", "zzz", "half \ud83d"])
    assert {snapshot.documents.record(number).external_id for number in numbers} == {"one", "Ä"}
    assert unknown == 4
    with pytest.raises(ArgumentError, match="numbers 0 to"):
        snapshot.documents.record(len(ROWS))


def test_ids_of_other_shards_are_refused(snapshot: Snapshot) -> None:
    shard = snapshot.shards[1]
    for wrong in (-1, shard.entry.first_row - 1, shard.entry.end_row):
        with pytest.raises(ArgumentError, match=f"chunk id {wrong} is not in shard 1"):
            shard.tokens(np.asarray([shard.entry.first_row, wrong]))
    with pytest.raises(ArgumentError, match="no opened shard"):
        snapshot.shard_of(snapshot.manifest.chunks)
    with pytest.raises(ArgumentError, match="one set of documents for each of 2"):
        shard.search(np.zeros((2, 16), np.float32), 1, [{1}])


def test_some_shards_can_be_opened_alone(folders: dict[int, Path]) -> None:
    alone = Snapshot.open(folders[7], shards=[4])
    assert [shard.number for shard in alone.shards] == [4]
    alone.check_golden()
    with pytest.raises(ArgumentError, match="shards 0 to 6"):
        Snapshot.open(folders[7], shards=[7])


def test_mapped_files_stay_readable_when_the_folder_goes(folders: dict[int, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[2], tmp_path / "copy")
    opened = Snapshot.open(tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")
    opened.check_golden()
    assert opened.documents.record(0).external_id


def test_inspect_shows_counts_and_a_chunk(folders: dict[int, Path], snapshot: Snapshot) -> None:
    shown = json.loads(json.dumps(inspect(folders[3], chunk=0)))
    assert (shown["snapshot"], shown["documents"], shown["chunks"]) == (
        snapshot.id,
        len(ROWS),
        snapshot.manifest.chunks,
    )
    assert shown["sample"]["text"] == snapshot.shards[0].text(np.asarray([0]))[0]
    assert sum(shard["rows"] for shard in shown["shards"]) == snapshot.manifest.chunks
    assert inspect(folders[1])["sample"]["id"] == snapshot.manifest.chunks // 2


def test_a_manifest_reads_back_to_the_same_id(folders: dict[int, Path]) -> None:
    manifest = Manifest.read(folders[2])
    assert manifest.to_bytes() == (folders[2] / "manifest.json").read_bytes()
    text = manifest.to_bytes().decode()
    assert str(folders[2].parent) not in text
    assert verify(folders[2], expected_id=manifest.snapshot_id).chunks == manifest.chunks
    assert verify(folders[2], expected_id=manifest.snapshot_id[:8]).snapshot_id == manifest.snapshot_id
    for other in ("12345678", manifest.snapshot_id[:-1] + "x", manifest.snapshot_id + "0"):
        with pytest.raises(CorruptError, match=f"expected snapshot {other}"):
            verify(folders[2], expected_id=other)
    for short in ("", manifest.snapshot_id[:7]):
        with pytest.raises(ArgumentError, match="at least its first 8 digits"):
            Snapshot.open(folders[2], expected_id=short)


# --- damage ---


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def edit_manifest(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n")


FILES = [
    "documents.arrow",
    "tokenizer/tokenizer.json",
    "shard-00000/lists.faiss",
    "shard-00001/tokens.bin",
    "shard-00001/lengths.bin",
    "shard-00000/documents.bin",
    "shard-00001/vectors.f16",
]


@pytest.fixture
def copy(folders: dict[int, Path], tmp_path: Path) -> Path:
    shutil.copytree(folders[2], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_found_and_named(copy: Path, name: str) -> None:
    for place in (0, -1):
        flip(copy / name, place)
        for level in ("sample", "full"):
            with pytest.raises(CorruptError, match=name):
                Snapshot.open(copy, level)
        with pytest.raises(CorruptError, match=name):
            verify(copy)
        flip(copy / name, place)
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-1])
    with pytest.raises(CorruptError, match=rf"{name}.*{len(data) - 1} bytes, the manifest says {len(data)}"):
        Snapshot.open(copy, "sizes")
    (copy / name).unlink()
    with pytest.raises(CorruptError, match=f"{name}.*missing"):
        Snapshot.open(copy, "sizes")


def test_of_a_large_file_three_blocks_are_compared_unless_all_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 10)
    path = build_tiny_snapshot(tmp_path / "s", rows=ROWS).path
    name = "shard-00000/lists.faiss"
    blocks = len(Manifest.read(path).files[name].blocks)
    assert blocks > 8
    for block in range(blocks):
        flip(path / name, block << 10)
        if block in (0, blocks // 2, blocks - 1):
            with pytest.raises(CorruptError, match=rf"{name}: checksum of its bytes from "):
                Snapshot.open(path)
        elif block < 3:
            Snapshot.open(path)
        if block < 3:
            with pytest.raises(CorruptError, match=f"{name}: checksum is "):
                Snapshot.open(path, "full")
        flip(path / name, block << 10)


def test_swapped_shards_are_found(copy: Path) -> None:
    (copy / "shard-00000").rename(copy / "other")
    (copy / "shard-00001").rename(copy / "shard-00000")
    (copy / "other").rename(copy / "shard-00001")
    with pytest.raises(CorruptError, match="shard-0000"):
        Snapshot.open(copy)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: flip(path, 0), "not JSON|not the manifest"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "not JSON"),
        (lambda path: path.write_text("[]"), "not the manifest"),
        (lambda path: path.write_text("{}"), "not the manifest"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not JSON"),
        (lambda path: edit_manifest(path, lambda r: r.update(format_version=99)), "version 99.*newer Openbook"),
        (lambda path: edit_manifest(path, lambda r: r.update(format_version=1)), "version 1.*build it anew"),
        (lambda path: edit_manifest(path, lambda r: r.update(extra=1)), "canonical"),
        (lambda path: edit_manifest(path, lambda r: r.pop("shards")), "cannot be read"),
        (lambda path: path.write_text(path.read_text().replace(",", ", ", 1)), "canonical"),
    ],
)
def test_a_damaged_manifest_is_found(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy / "manifest.json")
    with pytest.raises(CorruptError, match=message):
        Snapshot.open(copy)


def test_a_manifest_that_agrees_with_damaged_files_is_found_by_the_rows(copy: Path) -> None:
    """Another tokenizer, dropped documents: checksums fit, contents do not."""

    def forget_document(record: dict[str, object]) -> None:
        record["documents"] = int(str(record["documents"])) - 1

    edit_manifest(copy / "manifest.json", forget_document)
    with pytest.raises(CorruptError, match=r"documents\.arrow"):
        Snapshot.open(copy)


def test_a_changed_vector_fails_the_golden_queries(copy: Path) -> None:
    flip(copy / "shard-00000" / "lists.faiss", -2)
    opened = Snapshot.open(copy, "sizes")
    path = copy / "shard-00000" / "lists.faiss"
    vectors = np.frombuffer(path.read_bytes()[-opened.shards[0].rows * 64 :], "<f4").copy()
    path.write_bytes(path.read_bytes()[: -vectors.nbytes] + vectors[::-1].tobytes())
    with pytest.raises(CorruptError, match="golden queries"):
        Snapshot.open(copy, "sizes").check_golden()


def test_a_file_that_the_manifest_does_not_name_is_found(copy: Path) -> None:
    (copy / "shard-00000" / "more.bin").write_bytes(b"x")
    with pytest.raises(CorruptError, match=r"more\.bin"):
        verify(copy)


def test_no_snapshot_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no snapshot"):
        Snapshot.open(tmp_path)
    with pytest.raises(NotFoundError, match="holds no snapshot"):
        verify(tmp_path / "gone")
