"""Sources: each format against an independent writer, from any row on, and what is said of files that are damaged."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openbook_core.errors import ConfigError, InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.build.progress import Update
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.cleaning.config import CleaningConfig
from openbook_database.reader import BadLineError, Document, DocumentReader, FieldNames, Source, is_chosen
from openbook_database.snapshot import Snapshot
from openbook_database.sources.base import Item
from openbook_database.sources.digest import digest_sources
from openbook_database.sources.formats import format_of, open_rows
from openbook_database.sources.listing import expand_sources, read_source_list, with_all_metadata
from openbook_database.testing import END_TOKEN, HashEncoder, tiny_rows, tiny_tokenizer, tree, write_rows

sys.path.insert(0, str(Path(__file__).parent))
from megatron_files import write_megatron

# Written by datasets 5.2.0: DatasetDict.save_to_disk(num_shards={"train": 2, "test": 1}), test = rows 4 and 2 of train.
HUGGING_FACE = Path(__file__).parents[1] / "golden" / "huggingface_dataset"


def read(
    source: Source | Path, fields: FieldNames | None = None, *, skip: bool = False, line: int = 0
) -> list[Document]:
    source = source if isinstance(source, Source) else Source(path=source)
    reader = DocumentReader(source, fields or FieldNames(), skip_bad_lines=skip, known=set())
    reader.skip_to(line)
    return list(reader.read(lambda document: document))


def check_reading_goes_on(source: Source, fields: FieldNames | None = None) -> None:
    """From every row on, the rest is what it is when the source is read from its beginning."""
    rows = open_rows(source, fields or FieldNames())
    whole, shares = [], []
    for item in rows.rows(0):
        whole.append(item)
        shares.append(rows.share)
    assert shares == sorted(shares) and 0.9 < rows.share <= 1
    assert [item.number for item in whole] == sorted({item.number for item in whole})
    for skip in range(whole[-1].number + 2):
        expected: list[Item] = [item for item in whole if item.number > skip]
        assert repr(list(open_rows(source, fields or FieldNames()).rows(skip))) == repr(expected)


def parquet_table(rows: int) -> pa.Table:
    return pa.table(
        {
            "key": pa.array([f"k{number}" for number in range(rows)]),
            "body": pa.array([f"wörds {number} " * (number % 7 + 1) for number in range(rows)], pa.large_string()),
            "name": pa.array([None if number % 3 else f"N{number}" for number in range(rows)]),
            "nested": pa.array([{"years": [number, None], "at": {"x": number / 2}} for number in range(rows)]),
            "when": pa.array([datetime.datetime(2020, 1, 1, number % 24) for number in range(rows)]),
            "price": pa.array([Decimal("1.50")] * rows),
            "raw": pa.array([b"\x00\xff"] * rows),
            "ratio": pa.array([float("nan"), *[0.5] * (rows - 1)]),
            "unused": pa.array(range(rows)),
        }
    )


KEPT = FieldNames(id="key", text="body", metadata=("nested", "when", "price", "raw", "ratio", "absent"))


@pytest.mark.parametrize("compression", ["NONE", "zstd"])
def test_parquet_rows_come_back_as_pyarrow_has_them(tmp_path: Path, compression: str) -> None:
    table = parquet_table(50)
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, row_group_size=11, compression=compression)
    documents = read(path, KEPT)
    assert [(d.external_id, d.text, d.title) for d in documents] == [
        (row["key"], row["body"], row["name"]) for row in table.to_pylist()
    ]
    nested, when, price, raw, ratio, absent = documents[0].metadata
    assert [json.loads(value) for value in (nested, when, price, raw, ratio) if value] == [
        {"years": [0, None], "at": {"x": 0.0}},
        "2020-01-01T00:00:00",
        "1.50",
        "AP8=",
        "nan",
    ]
    assert absent is None
    assert json.loads(documents[7].metadata[0] or "") == {"years": [7, None], "at": {"x": 3.5}}
    check_reading_goes_on(Source(path=path), KEPT)


def test_a_damaged_parquet_file_and_missing_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(parquet_table(20), path)
    with pytest.raises(
        InputError, match=r"rows\.parquet has no column 'text' for the text; it has 'key', 'body'.*--text-field"
    ):
        read(path)
    with pytest.raises(InputError, match=r"no column 'id' for the document's id.*--id-field"):
        read(path, FieldNames(text="body"))
    assert read(path, FieldNames(text="body", id=""))[4].external_id == "rows.parquet:5"
    data = path.read_bytes()
    for damaged in (data[:-30], data[:40] + b"\xff" * 200 + data[240:], b"words"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"rows\.parquet is damaged or not Parquet"):
            read(path, KEPT)
    with pytest.raises(InputError, match=r"no such input file: .*gone\.parquet"):
        read(tmp_path / "gone.parquet")
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["x", None, "y"]}), path)
    with pytest.raises(BadLineError, match=r"rows\.parquet, row 2: field 'text' is a null"):
        read(path)
    assert [document.external_id for document in read(path, skip=True)] == ["a", "c"]


def test_a_hugging_face_dataset_written_by_the_library(tmp_path: Path) -> None:
    source = Source(path=HUGGING_FACE, split="train")
    documents = read(source, FieldNames(metadata=("meta",)))
    assert [(d.external_id, d.text, d.title, json.loads(d.metadata[0] or "")) for d in documents] == [
        (f"r{n}", f"# Head {n}\nwörds of row {n}", f"T{n}", {"year": 2000 + n, "tags": ["a", "b"]}) for n in range(7)
    ]
    check_reading_goes_on(source)
    assert [d.external_id for d in read(HUGGING_FACE / "test")] == ["r4", "r2"]
    (record,) = digest_sources([source])
    assert (record["format"], record["files"], record["split"]) == ("huggingface", 4, "train")


def hugging_face_folder(folder: Path, rows: int, batch: int) -> Path:
    folder.mkdir()
    table = pa.table({"id": [str(n) for n in range(rows)], "text": [f"row {n}" for n in range(rows)]})
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return folder


def test_what_is_no_whole_hugging_face_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"has the splits train, test; no split was named: give .*huggingface_dataset/train"
    ):
        read(HUGGING_FACE)
    with pytest.raises(InputError, match=r"there is no split 'dev'"):
        read(Source(path=HUGGING_FACE, split="dev"))
    with pytest.raises(InputError, match=r"has no splits, it cannot be asked for 'dev'"):
        read(Source(path=HUGGING_FACE / "test", split="dev"))
    folder = hugging_face_folder(tmp_path / "set", 10, 4)
    assert len(read(folder)) == 10
    data_file = folder / "data-00000-of-00001.arrow"
    data = data_file.read_bytes()
    for damaged in (data[:-8], data[:-60], b"words" * 20):
        data_file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"data-00000-of-00001\.arrow is damaged"):
            read(folder)
    data_file.write_bytes(data)
    (folder / "state.json").write_text(
        '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_data_files": [1]}'
    )
    with pytest.raises(InputError, match="flatten_indices"):
        read(folder)
    for state, message in (("{}", "names no data files"), ("{", "is not JSON"), ("[]", "names no data files")):
        (folder / "state.json").write_text(state)
        with pytest.raises(InputError, match=message):
            read(folder)


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    tiny_tokenizer().save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


TEXTS = ["Wörds of the first document.\n\n# And more", "東京 and 12,345", "x"]


@pytest.mark.parametrize("code", [3, 4, 5, 8])
@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_megatron_documents_are_the_texts_that_were_tokenised(
    tmp_path: Path, tokenizer_folder: Path, code: int, suffix: str
) -> None:
    tokenizer = tiny_tokenizer()
    end = tokenizer.token_id(END_TOKEN)
    assert end is not None
    ids = [tokenizer.encode(text).tolist() for text in TEXTS]
    documents = [[ids[0][:5], ids[0][5:], [end]], [[*ids[1], end]], [ids[2]]]  # two ways to end, and none
    prefix = write_megatron(tmp_path / "corpus_text", documents, code, modes=code == 4)
    source = Source(path=prefix.with_name(prefix.name + suffix), tokenizer=str(tokenizer_folder))
    assert [(d.external_id, d.text) for d in read(source)] == [
        (f"corpus_text:{n}", text) for n, text in enumerate(TEXTS)
    ]
    check_reading_goes_on(source)
    (record,) = digest_sources([source])
    assert record["tokenizer"] == tokenizer.fingerprint.digest


@pytest.mark.parametrize("code", [1, 2])
def test_megatron_tokens_of_one_byte(tmp_path: Path, tokenizer_folder: Path, code: int) -> None:
    ids = [int(token) for token in tiny_tokenizer().encode("only words") if token < 128]
    source = Source(path=write_megatron(tmp_path / "small", [[ids]], code), tokenizer=str(tokenizer_folder))
    assert [d.text for d in read(source)] == [tiny_tokenizer().decode(ids)]


def test_gpt2_vocabulary_and_merges_as_megatron_is_given_them(tmp_path: Path) -> None:
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    model = json.loads(tiny_tokenizer()._raw.to_str())["model"]
    (folder / "gpt2-vocab.json").write_text(json.dumps(model["vocab"] | {"<|endoftext|>": len(model["vocab"])}))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "gpt2-merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    ids = [*tiny_tokenizer().encode(TEXTS[0]).tolist(), len(model["vocab"])]
    source = Source(path=write_megatron(tmp_path / "corpus", [[ids]], 8), tokenizer=str(folder))
    assert [d.text for d in read(source)] == TEXTS[:1]


def test_damaged_megatron_files_are_named(tmp_path: Path, tokenizer_folder: Path) -> None:
    prefix = write_megatron(tmp_path / "corpus", [[[1, 2, 3]], [], [[4, 300]], [[5]]], 8)
    source = Source(path=prefix, tokenizer=str(tokenizer_folder))
    with pytest.raises(BadLineError, match=r"corpus\.bin, document 1: document 'corpus:1' has an empty text"):
        read(source)
    assert [d.external_id for d in read(source, skip=True)] == ["corpus:0", "corpus:3"]
    with pytest.raises(BadLineError, match=r"document 2: holds token 300, .* has 0 to 264"):
        read(source, line=2)
    idx, bin_file = prefix.with_suffix(".idx"), prefix.with_suffix(".bin")
    index, data = idx.read_bytes(), bin_file.read_bytes()
    for damage, message in (
        (index[:-9], "corpus.idx is cut short"),
        (index[:20], "does not begin with MMIDIDX"),
        (b"", "does not begin with MMIDIDX"),
        (b"TNTIDX\x00\x00" + index, "old format TNTIDX"),
        (index[:9] + struct.pack("<Q", 2) + index[17:], "has version 2"),
        (index[:17] + b"\x06" + index[18:], "token type 6"),
        (index[:-8] + struct.pack("<q", 9), "do not cover its sequences"),
    ):
        idx.write_bytes(damage)
        with pytest.raises(InputError, match=message):
            read(source)
    idx.write_bytes(index)
    bin_file.write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"corpus\.bin is cut short"):
        read(source, skip=True)
    bin_file.unlink()
    with pytest.raises(InputError, match=r"no such input file: .*corpus\.bin"):
        read(source)


def text_folder(folder: Path) -> Path:
    for name, data in {
        "b/page.md": b"intro\r\n# First *heading*\r\nwords\r\n",
        "b/code.md": b"```\n# no heading\n```\n## Second",
        "a.txt": "\ufeffplain wörds".encode(),
        "B.markdown": b"words",
        ".hidden.md": b"words",
        ".git/x.md": b"words",
        "image.png": b"\xff",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_of_text_and_markdown(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "notes")
    assert [(d.external_id, d.title, d.text) for d in read(folder)] == [
        ("B.markdown", "B", "words"),
        ("a.txt", "a", "plain wörds"),
        ("b/code.md", "Second", "```\n# no heading\n```\n## Second"),
        ("b/page.md", "First *heading*", "intro\n# First *heading*\nwords\n"),
    ]
    check_reading_goes_on(Source(path=folder))
    assert [d.external_id for d in read(folder / "a.txt")] == ["a.txt"]


def test_what_cannot_be_read_in_a_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "image.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"notes is a folder without a text or Markdown file.*give a glob"):
        read(folder)
    text_folder(folder)
    (folder / "b" / "bad.txt").write_bytes(b"good \xe9 bad")
    with pytest.raises(BadLineError, match=r"bad\.txt: is not UTF-8: byte 0xe9 at 5"):
        read(folder)
    assert len(read(folder, skip=True)) == 4
    (folder / "b" / "bad.txt").unlink()
    (folder / "b" / "up").symlink_to(folder)
    with pytest.raises(InputError, match=r"b/up is a link to a folder above itself"):
        read(folder)
    (folder / "b" / "up").unlink()
    (folder / "gone.md").symlink_to(folder / "nowhere")
    with pytest.raises(InputError, match=r"gone\.md"):
        digest_sources([Source(path=folder)])
    (folder / "gone.md").unlink()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "c.md").write_text("words")
    (folder / "b" / "link").symlink_to(tmp_path / "linked")
    assert "b/link/c.md" in [d.external_id for d in read(folder)]


def test_formats_are_told_by_name_or_given(tmp_path: Path) -> None:
    for name, wanted in (
        ("a.jsonl.gz", "jsonl"),
        ("a.anything", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.idx", "megatron"),
    ):
        assert format_of(Source(path=tmp_path / name)) == wanted
    path = write_rows(tmp_path / "rows.txt", [{"id": "a", "text": "words"}])
    assert read(path)[0].external_id == "rows.txt"
    assert read(Source(path=path, format="jsonl"))[0].external_id == "a"
    with pytest.raises(InputError, match="is of format text, which has no split"):
        read(Source(path=path, split="train"))
    with pytest.raises(InputError, match="is of format text, which has no tokenizer"):
        read(Source(path=path, tokenizer="gpt2"))


def test_a_glob_is_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt", "sub/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    given = Source(path=tmp_path / "*.jsonl", licence="MIT", weight=0.5)
    assert [(s.path.name, s.licence, s.weight) for s in expand_sources([given])] == [
        ("a.jsonl", "MIT", 0.5),
        ("b.jsonl", "MIT", 0.5),
    ]
    assert [s.path.name for s in expand_sources([str(tmp_path / "**" / "*.jsonl")])] == [
        "a.jsonl",
        "b.jsonl",
        "d.jsonl",
    ]
    with pytest.raises(InputError, match=r"no file matches .*\*\.parquet"):
        expand_sources([tmp_path / "*.parquet"])
    (tmp_path / "odd[1].jsonl").write_text("x")
    assert [s.path.name for s in expand_sources([tmp_path / "odd[1].jsonl"])] == ["odd[1].jsonl"]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_list_of_sources(tmp_path: Path, suffix: str) -> None:
    record = {
        "sources": [
            {
                "path": "data/*.jsonl",
                "weight": 0.25,
                "licence": "MIT",
                "fields": {"text": "body", "metadata": ["year"]},
            },
            {"path": "/abs/set", "format": "huggingface", "split": "train", "fields": {"metadata": ["tag", "year"]}},
        ]
    }
    path = tmp_path / f"list.{suffix}"
    path.write_text(json.dumps(record))
    first, second = read_source_list(path)
    assert (first.path, first.weight, first.licence) == (tmp_path / "data" / "*.jsonl", 0.25, "MIT")
    assert (second.path, second.format, second.split) == (Path("/abs/set"), "huggingface", "train")
    assert with_all_metadata(FieldNames(metadata=("a",)), [first, second]).metadata == ("a", "year", "tag")
    for entry, message in (
        ({"path": "a", "weight": 2}, r"sources\.0\.weight: .*less than or equal to 1"),
        ({"path": "a", "weight": 0}, r"sources\.0\.weight"),
        ({"path": "a", "wieght": 1}, "did you mean 'weight'"),
        ({"weight": 1}, r"sources\.0\.path"),
        ({"path": "a", "format": "csv"}, r"sources\.0\.format"),
    ):
        path.write_text(json.dumps({"sources": [entry]}))
        with pytest.raises(ConfigError, match=message):
            read_source_list(path)


def test_a_glob_beside_the_snapshot_stays_the_same_from_run_to_run(tmp_path: Path) -> None:
    """The build's own log and report are no sources, nor those of an earlier edition; other files of such names are."""
    write_rows(tmp_path / "a.jsonl", tiny_rows(6))
    write_rows(tmp_path / "my.log.jsonl", [{"id": "z", "text": "words"}])
    settings = SETTINGS.model_copy(update={"cleaning": CleaningConfig(dedup="exact")})

    def stop(update: Update) -> None:
        raise KeyboardInterrupt

    glob = tmp_path / "*.jsonl"
    with pytest.raises(KeyboardInterrupt):
        build([glob], tmp_path / "book", settings, progress=stop)
    made = build([glob], tmp_path / "book", settings)
    assert (made.resumed, made.documents) == (True, 7)
    assert (tmp_path / "book.log.jsonl").exists() and (tmp_path / "book.report.jsonl").exists()
    assert build([glob], tmp_path / "book", settings).reused
    assert build([glob], tmp_path / "later", settings, base=tmp_path / "book").shared["documents"] == 7


def test_a_weight_keeps_a_share_of_the_documents_whatever_their_order(tmp_path: Path) -> None:
    rows = [{"id": f"doc-{number}", "text": "words"} for number in range(4000)]
    forwards = write_rows(tmp_path / "a.jsonl", rows)
    backwards = write_rows(tmp_path / "b.jsonl", rows[::-1])
    chosen = {weight: {d.external_id for d in read(Source(path=forwards, weight=weight))} for weight in (0.1, 0.5, 1.0)}
    assert chosen[0.1] < chosen[0.5] < chosen[1.0] == {row["id"] for row in rows}
    for weight in (0.1, 0.5):  # five standard deviations
        assert abs(len(chosen[weight]) - 4000 * weight) < 5 * (4000 * weight * (1 - weight)) ** 0.5
    assert {d.external_id for d in read(Source(path=backwards, weight=0.1))} == chosen[0.1]
    assert [is_chosen("doc-1", w) for w in (0.3, 0.7)] == [True, True] or "doc-1" not in chosen[0.1]
    assert not any(is_chosen(f"doc-{n}", 1e-18) for n in range(1000))


SETTINGS = BuildSettings(chunk_length=16, embed_block=32, chunk_block=32)


def build(sources: list[Source | Path], out: Path, settings: BuildSettings = SETTINGS, **changes: Any) -> Any:
    return build_snapshot(
        sources, out, database="tiny", tokenizer=tiny_tokenizer(), encoder=HashEncoder(), settings=settings, **changes
    )


@pytest.fixture(autouse=True)
def without_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing takes most of a tiny build's time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def mixed(tmp_path: Path, tokenizer_folder: Path) -> list[Source | Path]:
    rows = tiny_rows(24, seed=5)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps({**row, "year": {"of": 1}}) + "\n" for row in rows[:6])
    table = pa.table({"key": [r["id"] for r in rows[6:12]], "body": [r["text"] for r in rows[6:12]], "year": range(6)})
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=2)
    ids = [[tiny_tokenizer().encode(str(row["text"])).tolist()] for row in rows[12:18]]
    return [
        tmp_path / "*.jsonl.gz",
        Source(path=tmp_path / "b.parquet", weight=0.7, fields=FieldNames(text="body", id="key", metadata=("year",))),
        text_folder(tmp_path / "notes"),
        Source(path=write_megatron(tmp_path / "corpus", ids, 8), tokenizer=str(tokenizer_folder), licence="MIT"),
        HUGGING_FACE / "train",
    ]


def test_all_formats_in_one_build_that_is_interrupted(tmp_path: Path, mixed: list[Source | Path]) -> None:
    whole = build(mixed, tmp_path / "whole")
    snapshot = Snapshot.open(whole.path)
    manifest = snapshot.manifest
    assert [s["format"] for s in manifest.sources] == ["jsonl", "parquet", "text", "megatron", "huggingface"]
    left_out = manifest.sources[1]["removed"].get("weight", 0)
    assert [s["documents"] for s in manifest.sources] == [6, 6 - left_out, 4, 6, 7]
    assert 0 < left_out < 6
    assert whole.removed == manifest.cleaning["removed"] == {"weight": left_out}
    assert manifest.sources[3]["licences"] == ["MIT"]
    number = snapshot.documents.number(str(tiny_rows(24, seed=5)[2]["id"]))
    assert number is not None
    assert snapshot.documents.record(number).metadata == {"year": {"of": 1}}
    stop_after = [0]

    def stop(update: Update) -> None:
        if update.stage != "chunk" or update.done > stop_after[0]:
            raise KeyboardInterrupt

    for stop_after[0] in range(0, whole.chunks, 40):
        with pytest.raises(KeyboardInterrupt):
            build(mixed, tmp_path / "parts", progress=stop)
    build(mixed, tmp_path / "parts")
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_a_megatron_dataset_gives_the_chunks_of_its_texts(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [{"id": f"corpus:{n}", "text": row["text"]} for n, row in enumerate(tiny_rows(8))]
    ids = [[tiny_tokenizer().encode(str(row["text"])).tolist()] for row in rows]
    source = Source(path=write_megatron(tmp_path / "corpus", ids, 4), tokenizer=str(tokenizer_folder))
    build([source], tmp_path / "megatron")
    build([write_rows(tmp_path / "rows.jsonl", rows)], tmp_path / "lines")
    for name in ("tokens.bin", "lengths.bin", "documents.bin", "lists.faiss"):
        path = Path("shard-00000") / name
        assert (tmp_path / "megatron" / path).read_bytes() == (tmp_path / "lines" / path).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "b" / "new.md").write_text("words"),
        lambda folder: (folder / "a.txt").unlink(),
        lambda folder: (folder / "a.txt").write_text("other"),
        lambda folder: (folder / "a.txt").rename(folder / "c.txt"),
    ],
    ids=["added", "removed", "changed", "renamed"],
)
def test_a_folder_that_changes_while_it_is_read_is_found(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = text_folder(tmp_path / "notes")
    changed: list[bool] = []

    def once(update: Update) -> None:
        if not changed:
            changed.append(True)
            change(folder)

    with pytest.raises(InputError, match=r"notes changed while it was being read"):
        build([folder], tmp_path / "snapshot", progress=once)
    build([folder], tmp_path / "snapshot")
    before = digest_sources([Source(path=folder)])
    (folder / "image.png").write_bytes(b"other")
    assert digest_sources([Source(path=folder)]) == before


def test_an_id_of_an_earlier_source_is_a_bad_row(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "notes")
    rows = write_rows(tmp_path / "rows.jsonl", [{"id": "b/page.md", "text": "words"}])
    with pytest.raises(InputError, match=r"page\.md: the id 'b/page\.md' was used by an earlier document"):
        build([rows, folder], tmp_path / "snapshot")
    result = build([rows, folder], tmp_path / "snapshot", SETTINGS.model_copy(update={"skip_bad_lines": True}))
    assert result.skipped == {"duplicate id": 1}


READ_WITHIN = """
import sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet
from openbook_database.reader import DocumentReader, FieldNames, Source

def peak():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024

before, most, documents = peak(), 0, 0
reader = DocumentReader(Source(path=Path(sys.argv[1])), FieldNames(), skip_bad_lines=False, known=set())
for _ in reader.read(lambda document: None):
    documents += 1
    if documents % 50 == 0:
        most = max(most, peak() - before)
print(documents, most, pa.default_memory_pool().max_memory() / 2**20)
"""


@pytest.mark.parametrize("kind", ["parquet", "huggingface"])
def test_memory_is_bounded_by_batches_not_by_the_file(tmp_path: Path, kind: str) -> None:
    """One row group, or one record batch, of 183 MiB is read in less, most of it what allocators keep."""
    rows = 12_000
    text = pa.array([os.urandom(4).hex() * 2000 for _ in range(rows)])
    table = pa.table({"id": [str(number) for number in range(rows)], "text": text})
    path = tmp_path / ("rows.parquet" if kind == "parquet" else "set")
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=rows, compression="NONE", use_dictionary=False)
    else:
        hugging_face_folder(path, 1, 1)
        name = path / "data-00000-of-00001.arrow"
        with pa.OSFile(str(name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    assert text.nbytes > 180 << 20
    out = subprocess.run(
        [sys.executable, "-c", READ_WITHIN, str(path)], capture_output=True, text=True, check=True
    ).stdout
    documents, most, pool = (float(number) for number in out.split())
    assert documents == rows
    assert most < 150
    assert pool < 60


def test_gpt2_from_its_original_files() -> None:
    """A real GPT-2 vocabulary, where there is one."""
    data = os.environ.get("OPENBOOK_DATA")
    folder = Path(data or "") / "tokenizers" / "gpt2"
    if not data or not folder.is_dir():
        pytest.skip("OPENBOOK_DATA is not set to a folder with tokenizers/gpt2 (1.5 MB, not shipped)")
    from openbook_database.sources.megatron import load_tokenizer

    tokenizer: Tokenizer = load_tokenizer(str(folder))
    assert tokenizer.vocab_size == 50_257
    assert tokenizer.encode("Hello world, it's 2026").tolist() == [15496, 995, 11, 340, 338, 1160, 2075]
