"""A snapshot's picture: recall against latency, and how long its chunks are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError
from openbook_database.files import map_array
from openbook_database.shard import Shard, shard_folder
from openbook_database.snapshot import Snapshot

_ROUNDS, _SECONDS = 20, 3.0
_BLUE = "#2f6fb2"


def plot(snapshot: Snapshot, path: Path) -> None:
    """Write a PNG. Recall is the manifest's; latency is measured now, here, one golden query at a time on one thread of calls.

    Raises ArgumentError where the file cannot be written or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ArgumentError("a plot needs an extra: pip install 'openbook-database[plot]'", field="plot") from None
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    recall_axis, length_axis = figure.subplots(1, 2)
    _draw_recall(recall_axis, snapshot)
    _draw_lengths(length_axis, chunk_lengths(snapshot), snapshot.manifest.contract.chunk_length)
    figure.suptitle(
        f"{snapshot.manifest.database}, snapshot {snapshot.id[:12]}: {snapshot.manifest.chunks:,} chunks", fontsize=11
    )
    try:
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        raise ArgumentError(f"--plot {path} cannot be written: {error.strerror}", field="plot") from error


def chunk_lengths(snapshot: Snapshot) -> NDArray[np.int64]:
    """Number of chunks [m + 1] of each number of tokens."""
    counts = np.zeros(snapshot.manifest.contract.chunk_length + 1, dtype=np.int64)
    for shard in snapshot.shards:
        lengths_N = map_array(snapshot.path / shard_folder(shard.number) / "lengths.bin", "u2", (shard.rows,))
        counts += np.bincount(lengths_N, minlength=len(counts))
    return counts


def with_search(snapshot: Snapshot, search: dict[str, int]) -> Snapshot:
    """The same snapshot with other search defaults."""
    manifest = replace(snapshot.manifest, index=replace(snapshot.manifest.index, search=search))
    shards = [
        Shard(snapshot.path, manifest, shard.number, snapshot.documents, snapshot.tokenizer)
        for shard in snapshot.shards
    ]
    return Snapshot(snapshot.path, manifest, snapshot.documents, snapshot.tokenizer, tuple(shards))


def latencies_ms(snapshots: Sequence[Snapshot], k: int = 10) -> list[float]:
    """Median time of a search for one golden query in each, which take turns, so that other work disturbs them alike.

    A first round brings the pages in.
    """
    end = time.perf_counter() + _SECONDS
    seconds: list[list[float]] = [[] for _ in snapshots]
    for turn in range(_ROUNDS):
        for query_D in snapshots[0].manifest.golden.queries_ND:
            for snapshot, times in zip(snapshots, seconds, strict=True):
                start = time.perf_counter()
                snapshot.search(query_D[None], k)
                if turn:
                    times.append(time.perf_counter() - start)
        if turn and time.perf_counter() > end:
            break
    return [1e3 * median(times) for times in seconds]


def _draw_recall(axis: Any, snapshot: Snapshot) -> None:
    index = snapshot.manifest.index
    axis.set_title("Recall against latency", fontsize=10)
    if index.exact:
        axis.set_axis_off()
        note = f"{index.factory}: exact, recall is 1 by definition.\nThere is nothing to trade.\n\n"
        note += f"One query takes {latencies_ms([snapshot])[0]:.2f} ms here (median, k = 10)."
        axis.text(0.5, 0.5, note, ha="center", va="center", fontsize=10, transform=axis.transAxes)
        return
    (name,) = index.search
    table = index.recall["measured"]
    latencies = latencies_ms([with_search(snapshot, {name: line[name]}) for line in table])
    recalls = [line["recall"] for line in table]
    axis.plot(latencies, recalls, "o-", color=_BLUE)
    for line, latency in zip(table, latencies, strict=True):
        chosen = line[name] == index.search[name]
        axis.annotate(
            f"{name} {line[name]}" if chosen else f"{line[name]}",
            (latency, line["recall"]),
            xytext=(6, -10),
            textcoords="offset points",
            fontsize=8,
            weight="bold" if chosen else None,
        )
    axis.axhline(index.recall["target"], color="grey", linewidth=0.8, linestyle=":")
    axis.set(xlabel="ms a query here, now (median, log scale)", ylabel=f"recall@{index.recall['k']}", xscale="log")
    axis.margins(x=0.2, y=0.1)
    axis.set_title(f"Recall against latency: {index.factory}, default in bold", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_lengths(axis: Any, counts: NDArray[np.int64], chunk_length: int) -> None:
    tokens = np.arange(1, chunk_length + 1)
    axis.bar(tokens, counts[1:], width=1.0, color=_BLUE, edgecolor="white", linewidth=0.2)
    full = counts[chunk_length] / counts.sum()
    axis.set_title(f"Chunk lengths: {full:.1%} are whole ({chunk_length} tokens)", fontsize=10)
    axis.set(xlabel="tokens of a chunk", ylabel="chunks (log scale)", yscale="log", xlim=(0, chunk_length + 1))
    axis.spines[["top", "right"]].set_visible(False)
