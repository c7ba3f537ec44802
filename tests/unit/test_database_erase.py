"""Erased documents: gone from every file, in every form; and what is left answers as a build without them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core.errors import ConfigError, CorruptError, InputError, NotFoundError, OpenbookError
from openbook_database.build.erase import erase_documents
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.index.quantiser import Quantiser
from openbook_database.manifest import Manifest
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder, build_tiny_snapshot, tiny_rows, tiny_tokenizer
from openbook_database.verify import verify

LISTS = 110
SECRET = {
    "id": "doc/0000--secret-é",  # the first of all, so the first border and the first golden query are its own
    "title": "Zarquon Beblebrox",
    "uri": "https://example.org/zarquon",
    "licence": "Zarquon-1.0",
    "text": 'The "hidden" plan of Zarquon: tünnels under Vogsphere, ' + "seventeen gates and one key. " * 6,
}
ROWS = [SECRET, *tiny_rows(30, seed=5)]


@pytest.fixture(autouse=True, scope="module")
def without_flushing() -> Iterator[None]:
    """Flushing takes most of a tiny build's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def build(out: Path, **changes: Any) -> Path:
    return build_tiny_snapshot(out, **{"rows": ROWS, "shards": 3, **changes}).path


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("old") / "old")


def ids_in_order(snapshot: Path) -> list[str]:
    return [str(each) for each in Snapshot.open(snapshot).documents.table.column("external_id").to_pylist()]


def traces(snapshot: Path, external_id: str) -> dict[str, list[bytes]]:
    """What a document leaves in the files of a snapshot, by form."""
    opened = Snapshot.open(snapshot)
    number = opened.documents.number(external_id)
    assert number is not None
    record = opened.documents.record(number)
    ids = np.arange(record.first_row, record.first_row + record.rows)
    shard = opened.shard_of(record.first_row)
    tokens = tiny_tokenizer().encode("".join(shard.text(ids)))
    words = [external_id, record.title or "", record.uri or "", record.licence or "", *shard.text(ids)]
    words = [word for word in words if len(word) > 10]
    vectors_ND = shard.vectors(ids)
    packed = [vector_D.astype("<f4").tobytes() for vector_D in vectors_ND]
    runs = [tokens[start : start + 8] for start in range(0, len(tokens) - 8, 16)]
    return {
        "text": [word.encode() for word in words],
        "JSON": [json.dumps(word)[1:-1].encode() for word in words],
        "uint16": [run.astype("<u2").tobytes() for run in runs],
        "uint32": [run.astype("<u4").tobytes() for run in runs],
        "float32": packed,
        "float16": [vector_D.astype("<f2").tobytes() for vector_D in vectors_ND],
        # Bytes in the middle of base64, for each place at which they can begin.
        "base64": [base64.b64encode(bytes(pad) + data)[4:-4] for data in packed for pad in range(3)],
    }


def secret_texts(snapshot: Path) -> list[str]:
    """Texts of the chunks of the secret document."""
    opened = Snapshot.open(snapshot)
    record = opened.documents.record(opened.documents.number(str(SECRET["id"])) or 0)
    return opened.shard_of(record.first_row).text(np.arange(record.first_row, record.first_row + record.rows))


def nearest(snapshot: Path, vectors_ND: np.ndarray) -> dict[str, float]:  # type: ignore[type-arg]
    """The largest cosine between given vectors and those that the index holds or decodes, and the centroids."""
    opened = Snapshot.open(snapshot)
    held = [shard.vectors(np.arange(shard.entry.first_row, shard.entry.end_row)) for shard in opened.shards]
    found = {"rows": np.concatenate(held)}
    if (snapshot / "quantiser.faiss").exists():
        quantiser = Quantiser(snapshot / "quantiser.faiss", dimension=16)
        found["centroids"] = quantiser.centroids_LE.copy()
    unit_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return {
        name: float((each @ unit_ND.T / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-9)).max())
        for name, each in found.items()
    }


def files_with(folder: Path, found: list[bytes]) -> set[str]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name for name, path in files.items() if any(each in path.read_bytes() for each in found)}


def test_the_search_for_traces_finds_them(old: Path) -> None:
    found = {form: files_with(old, pieces) for form, pieces in traces(old, SECRET["id"]).items()}
    assert found == {
        "text": {"documents.arrow", "manifest.json"},
        "JSON": {"documents.arrow", "manifest.json"},
        "uint16": {"shard-00000/tokens.bin"},
        "uint32": set(),
        "float32": {"shard-00000/lists.faiss"},
        "float16": {"shard-00000/vectors.f16"},
        "base64": {"manifest.json"},
    }


@pytest.mark.parametrize("how", ["erase", "build", "erase lossy", "build lossy", "build without vectors"])
def test_a_deleted_document_is_gone_from_every_file(old: Path, tmp_path: Path, how: str) -> None:
    exact = how in ("erase", "build")
    rows = ROWS if exact else ROWS[:14]
    if not exact:
        # So many lists that training gives some to one chunk, whose vector is then the centroid.
        kept = how.endswith("lossy")
        folder = tmp_path.parent / f"{tmp_path.name}-old"
        old = build(folder, rows=rows, keep_vectors=kept, index=f"IVF{LISTS},SQ8")
    secrets = [piece for pieces in traces(old, SECRET["id"]).values() for piece in pieces]
    secret_ND = HashEncoder().encode([f"{SECRET['title']}: {text}" for text in secret_texts(old)])
    assert min(nearest(old, secret_ND).values()) > 0.99999
    looked = 0

    def look(update: object) -> None:
        nonlocal looked
        looked += 1
        assert files_with(tmp_path, secrets) == set()

    out = tmp_path / "new"
    if how.startswith("erase"):
        erase_documents(old, [SECRET["id"]], out, progress=look)
    else:
        source = tmp_path / "input.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
        index = "auto" if exact else f"IVF{LISTS},SQ8"
        settings = BuildSettings(chunk_length=16, shards=3, embed_block=32, chunk_block=32, index=index)
        build_snapshot(
            [source],
            out,
            database="tiny",
            tokenizer=tiny_tokenizer(),
            encoder=HashEncoder(),
            settings=settings.model_copy(update={"keep_vectors": how != "build without vectors"}),
            base=old,
            progress=look,
        )
    assert looked > 2
    look(None)
    assert (old / "shard-00002" / "tokens.bin").samefile(out / "shard-00002" / "tokens.bin") == exact
    verify(out)
    assert max(nearest(out, secret_ND).values()) < 0.999
    assert Manifest.read(out).shards[0].first_id == ids_in_order(old)[1]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl") == ["new"]


def test_codes_without_vectors_cannot_be_erased_from(tmp_path: Path) -> None:
    old = build(tmp_path / "old", rows=ROWS[:14], keep_vectors=False, index="IVF2,SQ8")
    with pytest.raises(InputError, match="keeps no vectors.*build without the documents from the sources") as raised:
        erase_documents(old, [SECRET["id"]], tmp_path / "new")
    assert raised.value.field == "snapshot"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl") == ["old"]
    done = build_tiny_snapshot(
        tmp_path / "new", rows=ROWS[1:14], base=old, shards=3, keep_vectors=False, index="IVF2,SQ8"
    )
    assert Snapshot.open(done.path).documents.number(str(SECRET["id"])) is None


@pytest.mark.parametrize("index", ["IVF100,SQ8", "OPQ4_8,IVF100_HNSW4,PQ4"])
def test_fewer_chunks_may_be_left_than_the_index_has_lists(tmp_path: Path, index: str) -> None:
    """Lists hold one chunk, whose vector is the centroid: they are trained again on the 3 chunks that stay."""
    rows = [{"id": f"{number:03d}", "text": f"word{number} and{number * 7} so{number * 3}"} for number in range(300)]
    options: dict[str, Any] = {"index": index, "chunk_length": 64}
    old = build(tmp_path / "old", rows=rows, **options)
    erased = erase_documents(old, [str(row["id"]) for row in rows[3:]], tmp_path / "erased").path
    left = build(tmp_path / "left", rows=rows[:3], base=old, **options)
    query_QD = HashEncoder().encode([rows[1]["text"]])
    for path in (erased, left):
        verify(path)
        assert (path / "quantiser.faiss").read_bytes() != (old / "quantiser.faiss").read_bytes()
        assert Manifest.read(path).index.trained_on == 3
        found = Snapshot.open(path).search(query_QD, 5).ids_QK
        assert sorted(found[0].tolist()) == [-1, -1, 0, 1, 2]


@pytest.mark.parametrize("shards", [1, 3])
def test_what_is_left_is_what_a_build_without_the_documents_gives(tmp_path: Path, shards: int) -> None:
    old = build(tmp_path / "old", shards=shards)
    random = np.random.default_rng(8)
    ids = ids_in_order(old)
    for attempt in range(4):
        gone = set(random.choice(ids, int(random.integers(1, len(ids))), replace=False).tolist())
        folder = tmp_path / str(attempt)
        done = erase_documents(old, gone, folder / "erased")
        rows = [row for row in ROWS if row["id"] not in gone]
        built = build_tiny_snapshot(folder / "old", rows=rows, shards=shards, base=old)
        assert (done.documents, done.erased, done.chunks) == (len(rows), len(gone), built.chunks)
        assert done.shared_shards == built.shared["shards"]
        verify(done.path)
        ours, theirs = Manifest.read(done.path), Manifest.read(built.path)
        assert ours.files == theirs.files
        assert ours.recipe["erased"]["documents"] == len(gone)
        alike = {"recipe": {}, "sources": ()}
        assert replace(ours, **alike).to_bytes() == replace(theirs, **alike).to_bytes()


def test_documents_at_borders_and_whole_shards(old: Path, tmp_path: Path) -> None:
    ids, shards = ids_in_order(old), Manifest.read(old).shards
    middle = ids[shards[1].first_document : shards[1].end_document]
    for name, gone, left in (("first", middle[:1], 3), ("last", middle[-1:], 3), ("all", middle, 2)):
        done = erase_documents(old, gone, tmp_path / name)
        assert (done.shards, done.shared_shards) == (left, 2)
        assert done.notes[0].endswith("then delete it and every other copy and snapshot with them")
        verify(done.path)
        assert ids_in_order(done.path) == [each for each in ids if each not in gone]


def test_again_and_from_an_erased_one(old: Path, tmp_path: Path) -> None:
    ids = ids_in_order(old)
    first = erase_documents(old, ids[3:5], tmp_path / "first")
    second = erase_documents(first.path, ids[7:8], tmp_path / "second")
    manifest, tokens = Manifest.read(second.path), Manifest.read(old).tokens
    assert manifest.recipe["erased"]["documents"] == 3
    lengths = [np.fromfile(path, "<u2").sum() for path in second.path.glob("shard-*/lengths.bin")]
    assert manifest.tokens == sum(lengths) == tokens - manifest.recipe["erased"]["tokens"]
    again = erase_documents(old, ids[4:2:-1], tmp_path / "first")
    assert (again.reused, again.snapshot_id) == (True, first.snapshot_id)
    # As many documents, chunks and tokens as before, but others.
    twins = [{"id": name, "text": "the same words"} for name in "abc"]
    base = build(tmp_path / "twins", rows=twins, shards=1)
    erase_documents(base, ["a"], tmp_path / "without")
    with pytest.raises(ConfigError, match="from which other documents were erased"):
        erase_documents(base, ["b"], tmp_path / "without")
    assert ids_in_order(tmp_path / "without") == ["b", "c"]


def test_an_interrupted_erasure_goes_on_with_the_same_documents_only(old: Path, tmp_path: Path) -> None:
    base = build(tmp_path / "twins", rows=[{"id": name, "text": "the same words"} for name in "abc"], shards=1)

    def stop(update: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erase_documents(base, ["a"], tmp_path / "out", progress=stop)
    with pytest.raises(ConfigError, match=r"holds work that was begun otherwise: ids: was "):
        erase_documents(base, ["b"], tmp_path / "out")
    erase_documents(base, ["a"], tmp_path / "out")
    assert ids_in_order(tmp_path / "out") == ["b", "c"]
    assert "ids" not in Manifest.read(tmp_path / "out").recipe
    assert not (tmp_path / "out.building").exists()


REFUSED: list[tuple[Callable[[Path], Any], type[OpenbookError], str]] = [
    (
        lambda old: ["no", SECRET["id"], "nor this"],
        InputError,
        r"2 of 3 ids name no document of .*: 'no', 'nor this'\. Cor",
    ),
    (lambda old: ids_in_order(old), InputError, "all 31 documents of .* would be erased"),
    (lambda old: [], InputError, "nothing to erase"),
]


@pytest.mark.parametrize(("ids", "error", "message"), REFUSED)
def test_ids_that_cannot_be_erased(
    old: Path, tmp_path: Path, ids: Callable[[Path], Any], error: type[OpenbookError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        erase_documents(old, ids(old), tmp_path / "out")
    assert caught.value.field == "ids"
    assert list(tmp_path.iterdir()) == []


def test_unknown_ids_are_passed_over_if_asked(old: Path, tmp_path: Path) -> None:
    done = erase_documents(old, ["no", SECRET["id"]], tmp_path / "out", ignore_missing=True)
    assert (done.erased, done.missing, done.documents) == (1, 1, 30)
    with pytest.raises(InputError, match="none of 1 ids"):
        erase_documents(old, ["no"], tmp_path / "other", ignore_missing=True)


def test_snapshots_that_cannot_be_erased_from(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is the base itself"):
        erase_documents(old, [SECRET["id"]], old)
    with pytest.raises(NotFoundError, match="holds no snapshot"):
        erase_documents(tmp_path, [SECRET["id"]], tmp_path / "out")
    copy = build(tmp_path / "copy", rows=ROWS[:5], shards=1)
    data = bytearray((copy / "shard-00000" / "lists.faiss").read_bytes())
    data[-1] ^= 1
    (copy / "shard-00000" / "lists.faiss").write_bytes(data)
    with pytest.raises(CorruptError, match=r"lists\.faiss: checksum"):
        erase_documents(copy, [SECRET["id"]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def command() -> Callable[..., Any]:
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in ("db", *arguments)])


def test_the_command(old: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    names = ids_in_order(old)
    (tmp_path / "ids.txt").write_text(f"{names[0]}\n\n{names[9]}\n", encoding="utf-8")
    result = command(
        "erase", old, "--ids", tmp_path / "ids.txt", "--id", names[5], "--out", tmp_path / "new", "--json",
        tmp_path / "r.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 documents erased, 28 left" in result.stdout
    assert "still holds the erased documents" in result.stderr
    assert json.loads((tmp_path / "r.json").read_text())["erased"] == 3
    assert files_with(tmp_path, [names[0].encode()]) == {"ids.txt"}
    missing = command("erase", old, "--out", tmp_path / "other")
    assert isinstance(missing.exception, InputError)
    assert "--ids FILE or --id ID" in str(missing.exception)

    lines = command("diff", old, tmp_path / "new")
    assert lines.stdout.splitlines() == [f"- {names[place]}" for place in (0, 5, 9)]
    assert lines.stderr == "0 added, 0 changed, 3 removed, 28 unchanged\n"
