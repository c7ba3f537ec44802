"""The picture of the trials of `database.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from database_figures import Child, median_of


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Cost and memory against size, where a build's time goes, and the peers; what was not measured is said to be so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    raw = result["raw"]
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2).reshape(-1)
    drawings = (
        ("sizes", _draw_cost), ("sizes", _draw_memory), ("share", _draw_stages), ("peers", _draw_peers),
    )  # fmt: skip
    for axis, (part, draw) in zip(axes, drawings, strict=True):
        if part in raw:
            draw(axis, raw)
        else:
            axis.set_axis_off()
            axis.text(0.5, 0.5, f"{part}: not measured", ha="center", transform=axis.transAxes)
    run = next(iter(raw.values()))["run"]
    figure.suptitle(f"Builds of {run['data']} on {run['cores']} cores of {run['cpu']}", fontsize=10)
    figure.savefig(path, dpi=110)


def _draw_cost(axis: Any, raw: Mapping[str, Any]) -> None:
    sides: dict[str, Sequence[Child]] = {"random vectors": raw["sizes"]["builds"]}
    if "torch" in raw:
        sides["a random BERT"] = raw["torch"]["builds"]
    for colour, (encoder, builds) in enumerate(sides.items()):
        chunks = [child["chunks"] for child in builds]
        axis.plot(chunks, [child["wall_s"] for child in builds], "o-", color=f"C{colour}", label=f"all, {encoder}")
        if colour == 0:
            for mark, stage in zip("sv^xd", builds[-1]["stage_s"], strict=False):
                seconds = [child["stage_s"].get(stage, float("nan")) for child in builds]
                axis.plot(chunks, seconds, f"{mark}:", color="grey", markersize=4, label=f"{stage}, {encoder}")
    axis.set(xscale="log", yscale="log", xlabel="chunks", ylabel="seconds")
    axis.set_title("Cost against size", fontsize=10)
    axis.legend(fontsize=7)


def _draw_memory(axis: Any, raw: Mapping[str, Any]) -> None:
    builds = raw["sizes"]["builds"]
    chunks = [child["chunks"] for child in builds]
    axis.plot(chunks, [child["peak_rss_mb"] for child in builds], "o-", label="peak, mapped files included (VmHWM)")
    axis.plot(chunks, [child["peak_anonymous_mb"] for child in builds], "s-", label="peak of what is no file's")
    axis.plot(chunks, [child["index"]["bytes"] / 1e6 for child in builds], "k:", label="the index")
    if "torch" in raw:
        torch = raw["torch"]["builds"]
        peaks = [child["peak_rss_mb"] for child in torch]
        axis.plot([child["chunks"] for child in torch], peaks, "^-", label="peak with a random BERT")
    axis.set(xscale="log", xlabel="chunks", ylabel="MB", ylim=(0, None))
    axis.set_title("Memory of a build, random vectors", fontsize=10)
    axis.legend(fontsize=8)


def _draw_stages(axis: Any, raw: Mapping[str, Any]) -> None:
    first = raw["share"]["build"][0]
    children = [("with the encoder", first["stage_s"], first["wall_s"])]
    if "sizes" in raw:
        largest = raw["sizes"]["builds"][-1]
        children.append((f"{largest['chunks']:,} random vectors", largest["stage_s"], largest["wall_s"]))
    names = list(dict.fromkeys(stage for _, stages, _ in children for stage in stages))
    for row, (_, stages, wall_s) in enumerate(children):
        left = 0.0
        for place, stage in enumerate(names):
            share = stages.get(stage, 0.0) / wall_s
            axis.barh(row, share, left=left, color=f"C{place}", label=stage if row == 0 else None)
            if share > 0.06:
                axis.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=8, color="white")
            left += share
        axis.barh(row, max(0.0, 1 - left), left=left, color="lightgrey", label="rest" if row == 0 else None)
    for place, stage in enumerate(names):
        if stage not in children[0][1]:
            axis.barh(0, 0, color=f"C{place}", label=stage)
    axis.set_yticks(range(len(children)), [name for name, _, _ in children])
    axis.set(xlabel="share of the wall time", xlim=(0, 1), ylim=(-0.6, len(children) - 0.1))
    axis.set_title("Where a build's time goes", fontsize=10)
    axis.legend(fontsize=8, ncols=len(names) + 1, loc="upper center")


def _draw_peers(axis: Any, raw: Mapping[str, Any]) -> None:
    retro, index = raw["peers"]["retro_pytorch"], raw["peers"]["autofaiss"]
    bars = [
        ("text to neighbours\nours", median_of(retro["ours"], "seconds"), "C0"),
        ("retro-pytorch", median_of(retro["retro_pytorch"], "seconds"), "C1"),
        ("index of vectors\nours", index["ours"]["seconds"], "C0"),
        ("autofaiss", index["autofaiss"]["seconds"], "C1"),
    ]
    for row, (_, seconds, colour) in enumerate(bars):
        axis.barh(row, seconds, color=colour)
        axis.text(seconds, row, f" {seconds:.1f} s", va="center", fontsize=8)
    axis.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axis.invert_yaxis()
    axis.set(xlabel="seconds (log scale)", xscale="log")
    axis.margins(x=0.15)
    recalls = ", ".join(f"{side} {index[side]['recall']:.3f}" for side in ("ours", "autofaiss"))
    axis.set_title(f"{retro['documents']} documents; {index['vectors']:,} vectors, recall@10: {recalls}", fontsize=10)
