"""Building: the same bytes after every kind of interruption, and a clear error for everything that cannot be built."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from openbook_core.errors import ArgumentError, ConfigError, ConflictError, CorruptError, InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.build import recipe
from openbook_database.build.add_stage import split_documents
from openbook_database.build.erase import erase_documents
from openbook_database.build.progress import Update
from openbook_database.build.run import build_snapshot, recorded_dtype
from openbook_database.build.settings import BuildSettings
from openbook_database.build.workspace import Workspace
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder, build_tiny_snapshot, tiny_rows, tiny_tokenizer, tree, write_rows
from openbook_database.verify import verify

SETTINGS = BuildSettings(chunk_length=16, shards=3, embed_block=32, chunk_block=32)


def build(source: Path | Sequence[Path], out: Path, settings: BuildSettings = SETTINGS, **changes: Any) -> Any:
    sources = [source] if isinstance(source, Path) else source
    arguments: dict[str, Any] = {"database": "tiny", "tokenizer": tiny_tokenizer(), "encoder": HashEncoder()} | changes
    return build_snapshot(sources, out, settings=settings, **arguments)


@pytest.fixture(autouse=True)
def without_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing takes most of a tiny build's time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("source") / "input.jsonl", tiny_rows(40, seed=2))


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "snapshot"
    build(source, out)
    verify(out)
    return tree(out)


def test_interrupted_by_the_keyboard(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "snapshot"

    def interrupt(update: Update) -> None:
        if update.stage == "embed" and update.done > 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, out, progress=interrupt)
    assert not out.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    updates: list[Update] = []
    build(source, out, progress=updates.append)
    assert tree(out) == expected
    assert {update.stage for update in updates} == {"chunk", "embed", "add", "finish"}
    events = [json.loads(line) for line in (tmp_path / "snapshot.log.jsonl").read_text().splitlines()]
    named = [event["event"] for event in events if "stage" not in event]
    assert named == ["start", "index", "resume", "index", "finish"]
    assert next(e["reused"] for e in events if e["event"] == "end" and e.get("stage") == "embed") == 96


def test_a_finished_snapshot_is_left_alone(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    class NoEncoder(HashEncoder):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            raise AssertionError("nothing is left to encode")

    out = tmp_path / "snapshot"
    first = build(source, out)
    assert not first.reused
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = build(source, out, encoder=NoEncoder())
    assert again.reused
    assert again.snapshot_id == first.snapshot_id
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    (tmp_path / "snapshot.building").mkdir()
    assert build(source, out, encoder=NoEncoder()).reused
    assert not (tmp_path / "snapshot.building").exists()


def test_a_damaged_finished_snapshot_is_named_and_not_reused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "snapshot"
    build(source, out)
    (out / "shard-00001" / "tokens.bin").unlink()
    with pytest.raises(CorruptError, match=r"tokens\.bin: is missing"):
        build(source, out)


def test_the_folder_does_not_matter(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(source, tmp_path / "elsewhere" / source.name)
    out = tmp_path / "a" / "b"
    out.mkdir(parents=True)
    build(tmp_path / "elsewhere" / source.name, out)
    assert tree(out) == expected


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"settings": SETTINGS.model_copy(update={"chunk_length": 8})}, r"settings\.chunk_length: was 16, now 8"),
    (
        {"settings": SETTINGS.model_copy(update={"passage_template": "{text}"})},
        r"passage_template: was .*now \"\{text\}\"",
    ),
    ({"settings": SETTINGS.model_copy(update={"shards": 2})}, r"settings\.shards: was 3, now 2"),
    ({"encoder": HashEncoder(8)}, r"encoder\.dimension: was 16, now 8; encoder\.fingerprint\.dimension: was 16, now 8"),
    ({"database": "other"}, r'database: was "tiny", now "other"'),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_named_and_never_mixed(
    source: Path, tmp_path: Path, changes: dict[str, Any], message: str, finished: bool
) -> None:
    out = tmp_path / "snapshot"
    if finished:
        build(source, out)
    else:
        with pytest.raises(KeyboardInterrupt):
            build(source, out, progress=_raise(KeyboardInterrupt()))
    with pytest.raises(ConfigError, match=message):
        build(source, out, **changes)


def test_every_difference_is_listed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "snapshot"
    with pytest.raises(KeyboardInterrupt):
        build(source, out, progress=_raise(KeyboardInterrupt()))
    libraries = recipe._versions()
    assert {"faiss", "pyarrow", "tokenizers"} <= set(libraries)
    monkeypatch.setattr(recipe, "_versions", lambda: {"faiss": "9", "numpy": np.__version__})
    monkeypatch.setitem(recipe.STAGES, "chunk", 99)
    fields = SETTINGS.fields.model_copy(update={"title": ("heading",), "metadata": ("year",)})
    changed = SETTINGS.model_copy(update={"chunk_length": 8, "keep_vectors": False, "fields": fields})
    other = write_rows(tmp_path / "input.jsonl", tiny_rows(3))
    with pytest.raises(ConfigError) as caught:
        build(other, out, changed, database="other", encoder=HashEncoder(8))
    listed = {part.partition(": was ")[0] for part in str(caught.value).partition("otherwise: ")[2].split("; ")}
    wanted = {f"settings.{name}" for name in ("chunk_length", "keep_vectors", "fields.metadata", "fields.title")}
    wanted |= {"database", "stages.chunk", "encoder.dimension", "encoder.fingerprint.dimension"}
    wanted |= {f"libraries.{name}" for name in libraries if name != "numpy"}
    wanted |= {f"sources.0.{name}" for name in ("blake3", "size")}
    assert listed == wanted
    assert "settings.keep_vectors: was true, now false" in str(caught.value)


def test_another_input_is_named(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "snapshot"
    build(source, out)
    other = write_rows(tmp_path / "input.jsonl", tiny_rows(3))
    with pytest.raises(ConfigError, match=r"sources\.0\.blake3: was .*sources\.0\.size: was"):
        build(other, out)
    with pytest.raises(ConfigError, match=r"sources\.1: was null"):
        build([source, other], out)


def test_a_source_that_changes_while_it_is_read_is_found(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "input.jsonl"
    shutil.copy(source, copy)

    def append(update: Update) -> None:
        if copy.stat().st_size == source.stat().st_size:
            with copy.open("a") as stream:
                stream.write('{"id": "late", "text": "words"}\n')

    with pytest.raises(InputError, match=r"input\.jsonl changed while it was being read"):
        build(copy, tmp_path / "snapshot", progress=append)
    assert build(copy, tmp_path / "snapshot").documents == 41


def test_a_second_build_into_one_folder_refuses(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "snapshot"
    refused: list[ConflictError] = []

    def second(update: Update) -> None:
        if not refused:
            with pytest.raises(ConflictError, match="another build writes into") as caught:
                build(source, out)
            refused.append(caught.value)

    build(source, out, progress=second)
    assert refused


def test_a_folder_with_other_files_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="exists and is no snapshot"):
        build(source, tmp_path)
    with pytest.raises(InputError, match="exists and is no snapshot"):
        build(source, tmp_path / "photo.jpg")
    with pytest.raises(InputError, match="is a file, not a folder"):
        build(source, tmp_path / "photo.jpg" / "snapshot")


class Broken(HashEncoder):
    def __init__(self, spoil: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        super().__init__()
        self.spoil = spoil

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.spoil(super().encode(texts))


def _one_nan(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    vectors_ND[-1, 3] = np.nan
    return vectors_ND


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_one_nan, "not finite for 1 of chunks 0 to 31, first for the passage"),
        (lambda vectors_ND: np.full_like(vectors_ND, np.inf), "not finite"),
        (lambda vectors_ND: vectors_ND[:-1], r"shape \(31, 16\) for chunks 0 to 31, expected \(32, 16\)"),
        (lambda vectors_ND: vectors_ND[:, :8], r"expected \(32, 16\)"),
    ],
)
def test_a_broken_encoder_is_refused(
    source: Path, tmp_path: Path, spoil: Callable[[NDArray[np.float32]], NDArray[np.float32]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(source, tmp_path / "snapshot", encoder=Broken(spoil))
    assert not list((tmp_path / "snapshot.building" / "vectors").glob("*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n  \n", "no document"),
        (b'{"id": "a", "text": " "}', "line 1: document 'a' has an empty text"),
        (b"hello", "line 1: is not JSON"),
    ],
)
def test_input_without_documents(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        build(path, tmp_path / "snapshot")
    assert not (tmp_path / "snapshot").exists()
    if content.strip():
        with pytest.raises(InputError, match=r"no document \(1 bad lines were skipped\)"):
            build(path, tmp_path / "other", SETTINGS.model_copy(update={"skip_bad_lines": True}))
    with pytest.raises(InputError, match="no such input file"):
        build(tmp_path / "gone.jsonl", tmp_path / "snapshot")
    with pytest.raises(InputError, match="no input file was given"):
        build([], tmp_path / "snapshot")
    with pytest.raises(ArgumentError, match=r"'\.\./up' is no name"):
        build(path, tmp_path / "snapshot", database="../up")


@pytest.mark.parametrize("corrected", [True, False])
def test_after_bad_input_the_corrected_build_just_works(tmp_path: Path, corrected: bool) -> None:
    lines = [json.dumps(row) for row in tiny_rows(12, seed=3)]
    path, out = tmp_path / "input.jsonl", tmp_path / "snapshot"
    path.write_text("\n".join([*lines, "bad line"]))
    with pytest.raises(InputError, match=r"line 13: is not JSON: .*Correct it, or skip"):
        build(path, out)
    assert not (tmp_path / "snapshot.building").exists()
    if corrected:
        path.write_text("\n".join(lines))
    result = build(path, out, SETTINGS.model_copy(update={"skip_bad_lines": not corrected}))
    assert (result.documents, result.skipped) == (12, {} if corrected else {"not JSON": 1})


def test_bad_lines_are_counted_once_even_when_the_build_is_interrupted(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in tiny_rows(12, seed=3)]
    mixed = "\n".join(line + "\nbad line" for line in lines) + "\n[]\n"
    (tmp_path / "a.jsonl").write_text(mixed)
    (tmp_path / "b.jsonl").write_text("bad\n" + json.dumps({"id": "z", "text": "words"}) + "\nbad")
    sources = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    settings = SETTINGS.model_copy(update={"skip_bad_lines": True})
    whole = build(sources, tmp_path / "whole", settings)
    assert whole.skipped == {"not JSON": 14, "not an object": 1}
    assert whole.documents == 13

    def stop(update: Update) -> None:
        if update.done > stop_after[0]:
            raise KeyboardInterrupt

    stop_after = [0]
    for stop_after[0] in range(0, whole.chunks, 20):
        with pytest.raises(KeyboardInterrupt):
            build(sources, tmp_path / "parts", settings, progress=stop)
    build(sources, tmp_path / "parts", settings)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    manifest = Snapshot.open(tmp_path / "whole").manifest
    assert [source["skipped"] for source in manifest.sources] == [{"not JSON": 12, "not an object": 1}, {"not JSON": 2}]
    assert [source["documents"] for source in manifest.sources] == [12, 1]


@pytest.mark.parametrize("documents", [1, 2, 10])
def test_works_from_one_document_up(tmp_path: Path, documents: int) -> None:
    result = build_tiny_snapshot(tmp_path / "snapshot", documents=documents, shards=5)
    assert (result.documents, result.shards) == (documents, min(5, documents))
    assert bool(result.notes) == (documents < 5)
    verify(result.path)


def test_a_document_of_one_character(tmp_path: Path) -> None:
    result = build_tiny_snapshot(tmp_path / "snapshot", rows=[{"id": "a", "text": "x"}])
    snapshot = Snapshot.open(result.path)
    assert result.chunks == 1
    assert snapshot.shards[0].text(np.asarray([0])) == ["x"]
    assert snapshot.search(np.ones((1, 16), np.float32), 3).ids_QK.tolist() == [[0, -1, -1]]


def test_equal_documents_all_come_back_in_order(tmp_path: Path) -> None:
    rows = [{"id": f"{number:02d}", "text": "the very same words"} for number in range(30)]
    result = build_tiny_snapshot(tmp_path / "snapshot", rows=rows, shards=7, chunk_length=64)
    queries_QD = HashEncoder().encode(["the very same words"] * 3)
    assert Snapshot.open(result.path).search(queries_QD, 25, [set(), {0, 5}, set()]).ids_QK.tolist() == [
        list(range(25)),
        [n for n in range(27) if n not in (0, 5)],
        list(range(25)),
    ]


def test_only_the_first_documents(source: Path, tmp_path: Path) -> None:
    result = build(source, tmp_path / "snapshot", SETTINGS.model_copy(update={"limit_documents": 4}))
    assert result.documents == 4
    wanted = {str(row["id"]) for row in tiny_rows(40, seed=2)[:4]}
    documents = Snapshot.open(result.path).documents
    assert {documents.record(number).external_id for number in range(4)} == wanted


def test_a_long_document_spans_blocks(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(3000))
    rows = [{"id": "b", "text": text}, {"id": "a", "text": "short"}, {"id": "c", "text": "short"}]
    result = build_tiny_snapshot(tmp_path / "snapshot", rows=rows, shards=2)
    verify(result.path)
    snapshot = Snapshot.open(result.path)
    record = snapshot.documents.record(1)
    shard = snapshot.shard_of(record.first_row)
    assert "".join(shard.text(np.arange(record.first_row, record.first_row + record.rows))) == text


def large_tokenizer() -> Tokenizer:
    """A token for each byte, all above what 16 bits hold; below there is a gap."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE(vocab={symbol: 70_000 + n for n, symbol in enumerate(symbols)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return Tokenizer(raw)


def test_a_large_vocabulary_takes_32_bits(tmp_path: Path) -> None:
    """Also where rows are taken from a base, and where documents are erased."""
    tokenizer, rows = large_tokenizer(), tiny_rows(8)
    source = write_rows(tmp_path / "input.jsonl", rows)
    first = build(source, tmp_path / "first", tokenizer=tokenizer)
    changed = write_rows(tmp_path / "changed.jsonl", [{**rows[0], "text": "Other words."}, *rows[1:]])
    second = build(changed, tmp_path / "second", tokenizer=tokenizer, base=first.path)
    third = erase_documents(second.path, [rows[1]["id"]], tmp_path / "third")
    for path, left in ((first.path, rows), (second.path, rows[1:]), (third.path, rows[2:])):
        verify(path)
        snapshot = Snapshot.open(path)
        for row in left:
            number = snapshot.documents.number(row["id"])
            assert number is not None
            record = snapshot.documents.record(number)
            shard, ids = (
                snapshot.shard_of(record.first_row),
                np.arange(record.first_row, record.first_row + record.rows),
            )
            assert shard.token_dtype == np.uint32
            tokens_N2M, lengths_N2 = shard.tokens(ids)
            tokens = tokens_N2M[:, : tokens_N2M.shape[1] // 2].reshape(-1)[: int(lengths_N2[:, 0].sum())]
            assert tokens.min() >= 70_000
            np.testing.assert_array_equal(tokens, tokenizer.encode(row["text"]))
            assert "".join(shard.text(ids)) == row["text"]


def test_a_text_without_tokens_is_a_bad_line(tmp_path: Path) -> None:
    raw = RawTokenizer.from_str(tiny_tokenizer()._raw.to_str())
    raw.normalizer = normalizers.Replace("\u00ad", "")  # a soft hyphen is nothing
    tokenizer = Tokenizer(raw)
    source = write_rows(tmp_path / "input.jsonl", [{"id": "a", "text": "x"}, {"id": "b", "text": "\u00ad\u00ad"}])
    with pytest.raises(InputError, match=r"line 2: document 'b' has no tokens\. Correct it, or skip"):
        build(source, tmp_path / "s", tokenizer=tokenizer)
    result = build(source, tmp_path / "s", SETTINGS.model_copy(update={"skip_bad_lines": True}), tokenizer=tokenizer)
    assert (result.documents, result.skipped) == (1, {"no tokens": 1})


def all_vectors(path: Path) -> NDArray[np.float32]:
    shards = Snapshot.open(path).shards
    return np.concatenate([each.vectors(np.arange(each.entry.first_row, each.entry.end_row)) for each in shards])


class OfItsBatch(HashEncoder):
    """Rounds by the texts that are encoded together, as networks do on processors."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return super().encode(texts) * np.float32(1 + zlib.crc32("|".join(texts).encode()) % 97 * 1e-6)


def test_what_is_encoded_together_follows_from_the_block_alone(source: Path, tmp_path: Path) -> None:
    encoder = OfItsBatch()
    assert (encoder.encode(["a", "b"])[0] != encoder.encode(["a"])[0]).any()
    build(source, tmp_path / "whole", encoder=encoder)

    def stop(update: Update) -> None:
        if update.stage == "embed" and update.done > stop_after[0]:
            raise KeyboardInterrupt

    stop_after = [0]
    for stop_after[0] in (0, 40, 100, 200):
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path / "parts", encoder=encoder, progress=stop)
    build(source, tmp_path / "parts", encoder=encoder)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    build(source, tmp_path / "single", SETTINGS.model_copy(update={"shards": 1}), encoder=encoder)
    np.testing.assert_array_equal(all_vectors(tmp_path / "whole"), all_vectors(tmp_path / "single"))


def test_a_source_that_may_not_be_read_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = Path.open

    def refuse(path: Path, *arguments: Any, **named: Any) -> Any:
        if path == source:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open_file(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"input\.jsonl cannot be read: Permission denied"):
        build(source, tmp_path / "s")
    assert not (tmp_path / "s.building").exists()


@pytest.mark.parametrize(
    ("rows", "shards", "expected_ranges"),
    [
        ([1], 4, [(0, 1)]),
        ([1, 1], 3, [(0, 1), (1, 2)]),
        ([1000, 1, 1], 3, [(0, 1), (1, 2), (2, 3)]),
        ([1, 1, 1000], 2, [(0, 2), (2, 3)]),
        ([5, 5, 5, 5], 2, [(0, 2), (2, 4)]),
    ],
)
def test_shards_are_whole_documents_of_about_equal_rows(
    rows: list[int], shards: int, expected_ranges: list[tuple[int, int]]
) -> None:
    assert split_documents(np.asarray(rows), shards) == expected_ranges


def test_many_shards_cover_all_documents() -> None:
    random = np.random.default_rng(7)
    for _ in range(200):
        rows = random.integers(1, 200, int(random.integers(1, 40)))
        shards = int(random.integers(1, 50))
        ranges = split_documents(rows, shards)
        assert len(ranges) == min(shards, len(rows))
        assert [first for first, _ in ranges] == [0, *[end for _, end in ranges[:-1]]]
        assert ranges[-1][1] == len(rows)
        assert all(first < end for first, end in ranges)


def test_settings_say_what_is_wrong() -> None:
    for data, field in (
        ({"index": "IVF16,Pancake"}, "index"),
        ({"passage_template": "{title}"}, "passage_template"),
        ({"shards": 0}, "shards"),
        ({"chunk_length": -1}, "chunk_length"),
        ({"fields": {"texts": "a"}}, "fields"),
    ):
        with pytest.raises(ConfigError) as caught:
            BuildSettings.parse(data)
        assert str(caught.value.field).startswith(field)


def test_the_lock_outlives_a_finished_build(tmp_path: Path) -> None:
    work = Workspace(tmp_path / "snapshot")
    with work.locked():
        work.discard()
        with Workspace(tmp_path / "snapshot").locked():
            assert work.building.exists()


def _raise(error: BaseException) -> Callable[[Update], None]:
    def progress(update: Update) -> None:
        raise error

    return progress


def test_the_compute_type_of_a_build_is_remembered(tmp_path: Path) -> None:
    out = tmp_path / "book"
    assert recorded_dtype(out) is None
    build_tiny_snapshot(out)
    assert recorded_dtype(out) == "float32"
