"""Plans: bytes computed by hand and found in built snapshots, hours from given rates, shards, sources, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core.errors import ArgumentError, ConfigError
from openbook_database.index.recipe import resolve_recipe
from openbook_database.plan import Rates, choose, make_plan, parse_bytes, plan_record
from openbook_database.testing import build_tiny_snapshot

RATES = Rates(
    machine="a machine",
    date="2026-11-24T00:00:00+00:00",
    commit="0" * 40,
    command="python benchmarks/database.py",
    load=0.0,
    model="org/model",
    dtype="float32",
    data="book.jsonl",
    chunks_per_document=20.0,
    document_bytes=100.0,
    chunk_per_s=1000.0,
    encode_per_s=100.0,
    embed_share=0.5,
    write_bytes_per_s=1e8,
    finish_bytes_per_s=1e9,
    build_peak_mb=500.0,
    assign_flops=4e10,
    assign_flops_one_thread=2e10,
    graph_lists=1 << 10,
    graph_assign_per_s=10_000.0,
    codes_per_s=50_000.0,
    code_recall={"SQ8": 0.99, "PQ64": 0.75},
    code_recall_vectors="some vectors",
)


def plan(chunks: int, recall: float = 0.95, **options: Any) -> Any:
    return make_plan(chunks, recall, RATES, **options)


def test_a_billion_chunks_by_hand() -> None:
    made = plan(10**9)
    # 2 sqrt(N) = 63,246 and N / 1024 = 976,563 lists are wanted; 2^20 is the power of two nearest to the larger.
    assert made.recipe.factory == "IVF1048576_HNSW32,SQ8"
    assert "OPQ64_128,IVF1048576_HNSW32,PQ64" in made.recall_note and "0.750" in made.recall_note
    assert made.recall_note.endswith("build with --memory 64GB --shards 7")
    sizes = {name: figure.value for name, figure in made.disk.items()}
    assert sizes == {
        "tokens.bin": 128e9,
        "lengths.bin": 2e9,
        "documents.bin": 4e9,
        "vectors.f16": 768e9,
        "documents.arrow": 5e9,  # 50 million documents
        "index": (384 + 8 + 8) * 1e9,
        "quantiser": (1 << 20) * (4 * 384 + 8 + 272) + 8 * 384,
    }
    # (64 - 0.141 - 1.904) GB leave 61.955 GB for each part of 400 GB.
    assert made.shards.value == 7
    assert made.memory["index of a shard"].value == pytest.approx(400e9 / 7)
    assert made.work["vectors"].value == 1536e9
    assert made.memory["ids while chunking"].value == 5e9
    hours = {stage: figure.value for stage, figure in made.hours["a machine"].items()}
    assert hours["chunk"] == pytest.approx(1e6 / 3600)
    assert hours["embed"] == pytest.approx(1e9 / 50 / 3600)
    # 64 GB hold 41,666,666 of the 2^26 rows that 64 for each list would be: 2 * 10 * 384 * 2^20 operations each, on one thread,
    # and 2 * 384 for the ranges of 65,536.
    assert made.memory["training sample"].value == 41_666_666 * 4 * 384
    operations = 2 * 10 * 384 * 2**20 * 41_666_666 + 2 * 384 * 65_536
    assert hours["train-index"] == pytest.approx(operations / 2e10 / 3600)
    # log 2^20 is twice log 2^10, so walks take twice as long
    assert hours["add"] == pytest.approx((made.disk_bytes / 1e8 + 1e9 / 5000) / 3600)
    assert hours["finish"] == pytest.approx((made.disk_bytes / 1e9 + 2 * 384 * 1e9 * 100 / 4e10) / 3600)


def test_codes_are_kept_where_they_reach_the_recall() -> None:
    made = plan(10**9, 0.7)
    assert made.recipe.factory == "OPQ64_128,IVF1048576_HNSW32,PQ64"
    assert made.disk["index"].value == (64 + 8 + 8) * 1e9
    assert made.disk["quantiser"].value == (1 << 20) * (4 * 128 + 8 + 272) + 4 * 384 * 128 + 4 * 256 * 128
    train = made.hours["a machine"]["train-index"]
    sample = 64 * 10**9 // (4 * (384 + 128))
    assert made.memory["training sample"].value == sample * 4 * (384 + 128)
    kmeans, opq = 2 * 10 * 128 * 2**20 * sample, 2 * 50 * 65_536 * 128 * (2 * 384 + 256)
    codewords = 2 * 25 * 65_536 * 128 * 256
    assert train.value == pytest.approx((kmeans + opq + codewords) / 2e10 / 3600)
    assert train.source == "extrapolated"


@pytest.mark.parametrize("recall", [0.7, 0.95])
@pytest.mark.parametrize("memory", [4e9, 16e9, 64e9, 1e12])
def test_auto_takes_what_the_plan_recommends(recall: float, memory: float) -> None:
    for chunks in (1000, 10**6, 10**7, 10**8, 10**9, 10**10):
        made = plan(chunks, recall, memory=memory)
        built = resolve_recipe("auto", chunks, 384, int(memory), int(made.shards.value))
        assert built == made.recipe
        assert made.memory["training sample"].value <= memory
        assert made.memory["index of a shard"].value + made.memory["quantiser"].value <= memory


def test_where_codes_need_shards_that_hold_finer_ones_auto_takes_those() -> None:
    """112 bytes a row in two shards of 64 GB; codes of 48 bytes need two shards as well, as the quantiser is in each."""
    made = plan(10**9, dimension=96)
    assert made.recipe.factory == "IVF1048576_HNSW32,SQ8"
    assert made.shards.value == 2
    assert resolve_recipe("auto", 10**9, 96, int(64e9), 2) == made.recipe


def test_small_books_are_exact_and_every_number_has_its_source() -> None:
    made = plan(1000, gpu=True)
    assert made.recipe.exact and "by definition" in made.recall_note
    assert "train-index" not in made.hours["a machine"]
    assert made.disk["index"].value == 1000 * 384 * 4
    record = json.loads(json.dumps(plan_record(made)))
    figures = [*record["disk"].values(), *record["work"].values(), *record["memory"].values(), record["shards"]]
    figures += [figure for stages in record["hours"].values() for figure in stages.values()]
    assert {figure["source"] for figure in figures} == {"format", "measured", "extrapolated", "published"}
    assert all(figure["how"] for figure in figures)
    assert record["hours"]["the same with one GPU"]["embed"]["source"] == "published"


def test_unmeasured_codes_are_said_to_be_so() -> None:
    recipe, note = choose(10**9, 64, 0.95, RATES)
    assert (recipe.codes == 64 and "0.750" in note) or recipe.codec == "SQ8"
    _, note = choose(10**9, 80, 0.95, RATES, memory=16e9)
    assert "PQ40 codes keep was not measured" in note


@pytest.mark.parametrize("index", ["Flat", "HNSW16", "IVF32,SQ8", "IVF64,RaBitQ", "IVF512_HNSW32,Flat"])
def test_predicted_bytes_are_those_of_a_built_snapshot(tmp_path: Path, index: str, monkeypatch: Any) -> None:
    out = tmp_path / "book"
    built = build_tiny_snapshot(out, documents=80, dimension=32, shards=2, index=index)
    sizes = {path.name: 0 for path in out.rglob("*")}
    for path in out.rglob("*"):
        sizes[path.name] += path.stat().st_size if path.is_file() else 0
    documents = sizes["documents.arrow"] / built.documents
    rates = RATES.model_copy(update={"document_bytes": documents})
    from openbook_database import plan as planning
    from openbook_database.index.recipe import parse_recipe

    monkeypatch.setattr(planning, "choose_recipe", lambda *given: parse_recipe(index))
    made = make_plan(built.chunks, 0.5, rates, dimension=32, chunk_length=16, documents=built.documents)
    assert made.recipe.factory == index
    for name in ("tokens.bin", "lengths.bin", "documents.bin", "vectors.f16"):
        assert made.disk[name].value == sizes[name]
    lists = sizes["lists.faiss"] + sizes.get("places.bin", 0)
    shared = sizes.get("quantiser.faiss", 0) + sizes.get("list_sizes.bin", 0)
    # Headers and list heads are not counted: they weigh on small indexes.
    assert made.disk["index"].value == pytest.approx(lists, rel=0.08)
    assert made.disk["quantiser"].value == pytest.approx(shared, rel=0.08)
    whole = sum(
        size for name, size in sizes.items() if name not in ("manifest.json", "tokenizer.json", "tokenizer_config.json")
    )
    assert made.disk_bytes == pytest.approx(whole, rel=0.03)


@pytest.mark.parametrize(
    ("text", "size"), [("64GB", 64e9), ("512 MiB", 2**29), ("2e9", 2e9), ("1.5TB", 1.5e12), ("100b", 100.0)]
)
def test_sizes(text: str, size: float) -> None:
    assert parse_bytes(text, "memory") == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1..2GB", "64 apples", "1e5e5"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ArgumentError, match="memory: .* is no size"):
        parse_bytes(text, "memory")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"chunks": 0}, "chunks"),
        ({"chunks": 10, "recall": 0.0}, "recall"),
        ({"chunks": 10, "recall": 1.1}, "recall"),
        ({"chunks": 10, "dimension": 0}, "dimension"),
        ({"chunks": 10**10, "memory": 1e8}, "memory"),
    ],
)
def test_what_cannot_be_planned(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{field}: ") as raised:
        plan(**options)
    assert raised.value.field == field


def test_the_command_with_the_rates_that_come_with_it_and_with_ones_own(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["db", "plan", "--chunks", "1e9", "--recall", "0.95", "--gpu"])
    assert done.exit_code == 0, done.output
    shipped = Rates.read()
    for part in ("IVF1048576_HNSW32", "shards", "train-index", "published", shipped.machine, shipped.commit[:12]):
        assert part in done.stdout
    own = tmp_path / "result.json"
    own.write_text(json.dumps({"encoder_share": 0.9, "rates": RATES.model_dump(mode="json")}))
    done = CliRunner().invoke(app, ["db", "plan", "--chunks", "1e9", "--rates", str(own), "--json"])
    assert json.loads(done.stdout) == json.loads(json.dumps(plan_record(plan(10**9))))
    for wrong in ("many", "inf"):
        failed = CliRunner().invoke(app, ["db", "plan", "--chunks", wrong])
        assert isinstance(failed.exception, ArgumentError)


@pytest.mark.parametrize("text", ["", "[1]", '{"rates": 1}', '{"rates": {"machine": "m"}}'])
def test_what_holds_no_rates(tmp_path: Path, text: str) -> None:
    (tmp_path / "rates.json").write_text(text)
    with pytest.raises(ConfigError):
        Rates.read(tmp_path / "rates.json")
