"""Looking at a snapshot: overview, a chunk, neighbours by text and by chunk, as JSON and folded, and the picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core.errors import ArgumentError, MismatchError
from openbook_database import inspect_plot
from openbook_database.inspect import describe_chunk, inspect, neighbours_of_chunk, neighbours_of_text
from openbook_database.inspect_plot import chunk_lengths, plot
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder, build_tiny_snapshot, tiny_rows


class QueryEncoder(HashEncoder):
    """Turns queries round, so that a passage's vector used for a query would show."""

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return -self.encode(texts)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("inspect") / "tiny"
    build_tiny_snapshot(folder, documents=30, shards=3)
    return Snapshot.open(folder)


def look(snapshot: Snapshot, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["db", "inspect", str(snapshot.path), *arguments], env={"COLUMNS": "60"})
    assert done.exit_code == 0, done.output
    return done.stdout


def vectors(snapshot: Snapshot) -> NDArray[np.float32]:
    return np.concatenate([shard.vectors(np.arange(*ends)) for shard in snapshot.shards for ends in [ends_of(shard)]])


def ends_of(shard: Any) -> tuple[int, int]:
    return shard.entry.first_row, shard.entry.end_row


def by_hand(snapshot: Snapshot, query_D: NDArray[np.float32], k: int, left_out: int | None = None) -> list[int]:
    """Ids by score, then id, over all vectors in float64."""
    scores_N = vectors(snapshot).astype(np.float64) @ query_D.astype(np.float64)
    order = np.lexsort((np.arange(len(scores_N)), -np.round(scores_N, 6)))
    return [int(row) for row in order if row != left_out][:k]


def test_a_chunk_joins_to_its_context_and_continuation(snapshot: Snapshot) -> None:
    documents = snapshot.documents
    number = int(np.argmax(documents.rows))
    first, rows = int(documents.first_rows[number]), int(documents.rows[number])
    chunks = [describe_chunk(snapshot, first + row) for row in range(rows)]
    assert rows > 2
    assert [chunk["context"] for chunk in chunks] == ["", *(chunk["text"] for chunk in chunks[:-1])]
    assert [chunk["continuation"] for chunk in chunks] == [*(chunk["text"] for chunk in chunks[1:]), ""]
    assert {chunk["document"]["id"] for chunk in chunks} == {documents.record(number).external_id}


@pytest.mark.parametrize("chunk", [0, 17, 100])
def test_neighbours_of_a_chunk_are_the_nearest_others(snapshot: Snapshot, chunk: int) -> None:
    found = neighbours_of_chunk(snapshot, chunk, 7)
    query_D = vectors(snapshot)[chunk]
    assert [each["id"] for each in found] == by_hand(snapshot, query_D, 7, left_out=chunk)
    assert found[0]["score"] == pytest.approx(float(vectors(snapshot)[found[0]["id"]] @ query_D), abs=1e-5)
    everything = neighbours_of_chunk(snapshot, chunk, 4000)
    assert len(everything) == snapshot.manifest.chunks - 1


def test_neighbours_of_a_text_are_asked_as_a_query(snapshot: Snapshot) -> None:
    encoder = QueryEncoder(16)
    found = neighbours_of_text(snapshot, "ka1 lo2 the7", 5, encoder)
    assert [each["id"] for each in found] == by_hand(snapshot, -encoder.encode(["ka1 lo2 the7"])[0], 5)


def test_another_embedder_or_a_coarse_one_is_refused(snapshot: Snapshot) -> None:
    with pytest.raises(MismatchError, match="dimension: the encoder given has 8, the snapshot has 16"):
        neighbours_of_text(snapshot, "ka1", 5, QueryEncoder(8))

    class Coarse(QueryEncoder):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return np.sign(super().encode(texts))

    with pytest.raises(MismatchError, match="has the fingerprint of the snapshot but other vectors: probe text"):
        neighbours_of_text(snapshot, "ka1", 5, Coarse(16))
    with pytest.raises(ArgumentError, match="text: is empty"):
        neighbours_of_text(snapshot, " \n", 5, QueryEncoder(16))


def test_the_overview_in_a_terminal_and_as_json(snapshot: Snapshot) -> None:
    shown = json.loads(look(snapshot, "--json"))
    assert shown == json.loads(json.dumps(inspect(snapshot.path)))
    files = [path for path in snapshot.path.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert sum(shown["bytes_by_file"].values()) == shown["bytes"] == sum(path.stat().st_size for path in files)
    assert shown["bytes_by_file"]["tokens.bin"] == snapshot.manifest.chunks * 16 * 2
    text = look(snapshot)
    for part in (snapshot.id, "Flat, exact", "1 by definition", "tokens.bin", "tiny.jsonl: 30 documents"):
        assert part in text


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """With an index whose recall is measured, metadata, and a document that was left out."""
    rows: list[dict[str, Any]] = [{**row, "year": 2000 + number} for number, row in enumerate(tiny_rows(40))]
    rows.append({**rows[0], "id": "twin"})
    folder = tmp_path_factory.mktemp("measured") / "tiny"
    settings: dict[str, Any] = {"fields": {"metadata": ("year",)}, "cleaning": {"dedup": "exact"}}
    build_tiny_snapshot(folder, rows=rows, index="IVF16,SQ8", shards=2, **settings)
    return Snapshot.open(folder)


def test_measured_recall_cleaning_and_metadata_are_shown(measured: Snapshot) -> None:
    text, index = look(measured), measured.manifest.index
    for line in index.recall["measured"]:
        mark = "  <- the default" if line["nprobe"] == index.search["nprobe"] else "\n"
        assert f"{line['nprobe']:>10} {line['recall']:>8.4f} {line['distances']:>12,.0f}{mark}" in text
    assert f"{index.recall['chosen']:.4f} @10, 0.95 was wanted" in text
    assert "IVF16,SQ8, trained on" in text and "left out: 1 exact duplicate" in text
    found = json.loads(look(measured, "--neighbours-of", "5", "--json"))["neighbours"]
    for each in found:
        record = measured.documents.record(each["document"]["number"])
        assert each["document"]["metadata"] == record.metadata and record.metadata["year"] >= 2000
    year = describe_chunk(measured, 5)["document"]["metadata"]["year"]
    assert f"year         {year}" in look(measured, "--chunk", "5")


def test_the_curve_is_what_was_measured_over_latency(measured: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, int]] = []

    def latencies(snapshots: Sequence[Snapshot]) -> list[float]:
        asked.extend(snapshot.manifest.index.search for snapshot in snapshots)
        return [1.0 + number for number in range(len(snapshots))]

    monkeypatch.setattr(inspect_plot, "latencies_ms", latencies)
    recall_axis, length_axis = Figure().subplots(1, 2)
    inspect_plot._draw_recall(recall_axis, measured)
    table = measured.manifest.index.recall["measured"]
    assert asked == [{"nprobe": line["nprobe"]} for line in table] and len(table) > 1
    curve = recall_axis.lines[0]
    assert list(curve.get_ydata()) == [line["recall"] for line in table]
    assert list(curve.get_xdata()) == [1.0 + number for number in range(len(table))]
    bold = [each.get_text() for each in recall_axis.texts if each.get_fontweight() == "bold"]
    assert bold == [f"nprobe {measured.manifest.index.search['nprobe']}"]
    counts = chunk_lengths(measured)
    inspect_plot._draw_lengths(length_axis, counts, 16)
    assert [bar.get_height() for bar in length_axis.patches] == counts[1:].tolist()


def test_latency_is_measured_for_each_setting(measured: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_plot, "_SECONDS", 0.0)
    searched: list[int] = []
    search = Snapshot.search

    def counted(self: Snapshot, *arguments: Any, **named: Any) -> Any:
        searched.append(self.manifest.index.search["nprobe"])
        return search(self, *arguments, **named)

    monkeypatch.setattr(Snapshot, "search", counted)
    found = inspect_plot.latencies_ms([inspect_plot.with_search(measured, {"nprobe": each}) for each in (1, 16)])
    assert len(found) == 2 and min(found) > 0
    assert searched.count(1) == searched.count(16) == 2 * len(measured.manifest.golden.queries_ND)


def test_chunk_and_neighbours_fit_the_terminal(snapshot: Snapshot) -> None:
    assert json.loads(look(snapshot, "--chunk", "5", "--json"))["sample"] == describe_chunk(snapshot, 5)
    assert describe_chunk(snapshot, 5)["document"]["title"] in look(snapshot, "--chunk", "5")
    found = json.loads(look(snapshot, "--neighbours-of", "5", "-k", "3", "--json"))
    assert found["neighbours"] == json.loads(json.dumps(neighbours_of_chunk(snapshot, 5, 3)))
    text = look(snapshot, "--neighbours-of", "5", "-k", "3")
    for neighbour in found["neighbours"]:
        assert f"{neighbour['score']:.4f}  chunk {neighbour['id']}  {neighbour['document']['title']}" in text
    assert max(map(len, text.splitlines())) <= 60


@pytest.mark.parametrize(
    "arguments",
    [
        ("--chunk", "999"),
        ("--neighbours-of", "-1"),
        ("--chunk", "1", "--text", "a"),
        ("--neighbours-of", "1", "-k", "0"),
    ],
)
def test_what_there_is_not_is_an_error(snapshot: Snapshot, arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["db", "inspect", str(snapshot.path), *arguments])
    assert isinstance(done.exception, ArgumentError)


def test_the_picture(snapshot: Snapshot, tmp_path: Path) -> None:
    counts = chunk_lengths(snapshot)
    lengths = [
        snapshot.shard_of(chunk).tokens(np.asarray([chunk]))[1][0, 0] for chunk in range(snapshot.manifest.chunks)
    ]
    assert counts.tolist() == np.bincount(lengths, minlength=17).tolist()
    plot(snapshot, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArgumentError, match="cannot be written"):
        plot(snapshot, tmp_path / "no such folder" / "picture.png")
