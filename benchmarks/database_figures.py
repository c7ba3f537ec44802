"""From the trials of `database.py` to its figures, the rates of `openbook db plan`, its printed lines and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Child = Mapping[str, Any]


def summarise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The figures, every one of them from `raw` alone; None where a peer or a size was not measured.

    `encoder_share`: chunks per second of a build over those of the bare encoder on the same lists of texts, medians;
    `stages`: share of each stage in the wall time of those builds, `encoder` the part of `embed` inside the encoder.
    `peak_rss_mb`: by chunks, of processes that build with random vectors. `add_over_faiss`: by chunks, seconds of bare Faiss
    over those of our index files; `add_stage_over_faiss`: over the stage, which also reads blocks and writes tokens, documents
    and vectors. `incremental_share`: 1% of the documents changed,
    over the full build; `incremental_share_large` is computed for the large corpus from a build with random vectors and
    the encoder's rate. `vs_`: the peer's seconds over ours, above 1 where we are quicker.
    """
    builds, bare = raw["share"]["build"], raw["share"]["bare"]
    wall_s = median(trial["wall_s"] for trial in builds)
    random = [child for child in raw["sizes"] if child["encoder"] == "random unit vectors"]
    added = [child for child in random if "adding" in child]
    small, large = raw["incremental"]
    retro, index = raw.get("retro_pytorch"), raw.get("autofaiss")
    stages = {stage: median(trial["stage_s"][stage] for trial in builds) / wall_s for stage in builds[0]["stage_s"]}
    stages["encoder"] = median(trial["encode_s"] for trial in builds) / wall_s
    return {
        "encoder_share": round(median(trial["wall_s"] for trial in bare) / wall_s, 4),
        "encoder_share_by_cpu_time": round(
            median(trial["cpu_s"] for trial in bare) / median(trial["cpu_s"] for trial in builds), 4
        ),
        "chunks_per_s": round(builds[0]["chunks"] / wall_s, 2),
        "stages": {stage: round(share, 4) for stage, share in stages.items()},
        "peak_rss_mb": {str(child["chunks"]): round(child["peak_rss_mb"], 1) for child in random},
        "peak_anonymous_mb": {str(child["chunks"]): round(child["peak_anonymous_mb"], 1) for child in random},
        "add_over_faiss": {
            str(child["chunks"]): round(median(child["adding"]["bare_faiss_s"]) / median(child["adding"]["ours_s"]), 4)
            for child in added
        },
        "add_stage_over_faiss": {
            str(child["chunks"]): round(median(child["adding"]["bare_faiss_s"]) / child["stage_s"]["add"], 4)
            for child in added
        },
        "incremental_share": round(small["incremental"]["wall_s"] / small["full"]["wall_s"], 4),
        "incremental_share_large": round(_with_encoder(large, _encode_per_s(raw)), 4),
        "vs_retro_pytorch": None
        if retro is None
        else round(_median(retro["retro_pytorch"], "seconds") / _median(retro["ours"], "seconds"), 4),
        "vs_autofaiss": None
        if index is None
        else {
            "build": round(index["autofaiss"]["seconds"] / index["ours"]["seconds"], 4),
            **{
                name: {side: round(index[side][name], 4) for side in ("ours", "autofaiss")}
                for name in ("recall", "query_ms", "bytes")
            },
        },
        "rates": rates(raw),
    }


def rates(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What `openbook db plan --rates` reads; `openbook_database.plan.Rates` says what each is."""
    largest = max(
        (child for child in raw["sizes"] if child["encoder"] == "random unit vectors"),
        key=lambda child: child["chunks"],
    )
    builds, parts = raw["share"]["build"], raw["parts"]
    # The probe texts are encoded in the stage "finish".
    chunks = raw["share"]["build"][0]["chunks"] / raw["share"]["texts"]
    inside = min(1.0, median(chunks * trial["encode_s"] / trial["stage_s"]["embed"] for trial in builds))
    return {
        "machine": f"{raw['cores']} cores of {raw['cpu']}",
        "date": raw["date"],
        "commit": raw["commit"],
        "command": raw["command"],
        "load": raw["load_1m_before"],
        "model": raw["model"],
        "dtype": raw["share"]["dtype"],
        "data": raw["data"],
        "chunks_per_document": round(largest["chunks"] / largest["documents"], 3),
        "document_bytes": round(largest["documents_bytes"] / largest["documents"], 1),
        "chunk_per_s": round(largest["chunks"] / largest["stage_s"]["chunk"], 1),
        "encode_per_s": round(_encode_per_s(raw), 2),
        "embed_share": round(inside, 4),
        "finish_bytes_per_s": round(largest["snapshot_bytes"] / largest["stage_s"]["finish"]),
        "write_bytes_per_s": round(
            (largest["snapshot_bytes"] - largest["documents_bytes"]) / largest["stage_s"]["add"]
        ),
        "build_peak_mb": round(largest["peak_anonymous_mb"], 1),
        "assign_flops": round(parts["assign_flops"]),
        "assign_flops_one_thread": round(parts["assign_flops_one_thread"]),
        "graph_lists": parts["lists"],
        "graph_assign_per_s": round(parts["graph_assign_per_s"], 1),
        "codes_per_s": round(parts["codes_per_s"], 1),
        "code_recall": {codec.split(",")[-1]: round(recall, 4) for codec, recall in raw["codecs"]["recall"].items()},
        "code_recall_vectors": raw["codecs"]["vectors"],
    }


def _encode_per_s(raw: Mapping[str, Any]) -> float:
    return float(raw["share"]["texts"] / _median(raw["share"]["bare"], "wall_s"))


def _with_encoder(trial: Mapping[str, Any], encode_per_s: float) -> float:
    """The share if each build had also paid for the encoder: full for all chunks, incremental for a hundredth."""
    full, changed = trial["full"], trial["incremental"]
    encode_s = full["chunks"] / encode_per_s
    return float((changed["wall_s"] + encode_s / 100) / (full["wall_s"] + encode_s))


def _median(trials: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(median(trial[name] for trial in trials))


def report(result: Mapping[str, Any]) -> list[str]:
    """The lines that are printed."""
    raw = result["raw"]
    lines = [
        f"{raw['cores']} cores of {raw['cpu']}; load {raw['load_1m_before']} before, {raw['load_1m_after']} after",
        f"{raw['data']}; {raw['model']} in {raw['share']['dtype']}; bfloat16 "
        + ("is quick here, see openbook embedder compare" if "amx_bf16" in raw["cpu"] else "was not measured: no AMX"),
        f"{'chunks':>9} {'vectors':>20} {'index':>24} {'seconds':>8} {'ms/chunk':>8} {'peak MB':>8} "
        f"{'anon MB':>8} {'index MB':>8}",
    ]
    for child in raw["sizes"]:
        lines.append(
            f"{child['chunks']:>9} {child['encoder'][-20:]:>20} {child['index']['factory']:>24} {child['wall_s']:>8.1f} "
            f"{1e3 * child['wall_s'] / child['chunks']:>8.3f} {child['peak_rss_mb']:>8.0f} {child['peak_anonymous_mb']:>8.0f} "
            f"{child['index']['bytes'] / 1e6:>8.1f}"
        )
    if (retro := raw.get("retro_pytorch")) is not None:
        lines += [
            f"{side:<14} {retro['documents']} documents, {retro[side][0]['chunks']} chunks: "
            f"{_median(retro[side], 'seconds'):.1f} s"
            for side in ("ours", "retro_pytorch")
        ]
    if (index := raw.get("autofaiss")) is not None:
        lines += [
            f"{side:<14} {index['vectors']} vectors: {index[side]['factory']}, {index[side]['seconds']:.1f} s, "
            f"recall@10 {index[side]['recall']:.3f} at {index[side]['query_ms']:.2f} ms, {index[side]['bytes'] / 1e6:.1f} MB"
            for side in ("ours", "autofaiss")
        ]
    return lines + [f"{name:<26} {value}" for name, value in result.items() if name not in ("raw", "rates")]


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Cost and memory against size, where a build's time goes, and the peers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    raw = result["raw"]
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _draw_cost(axes[0, 0], raw["sizes"])
    _draw_memory(axes[0, 1], raw["sizes"])
    _draw_stages(axes[1, 0], raw)
    _draw_peers(axes[1, 1], raw)
    figure.suptitle(f"Builds of {raw['data']} on {raw['cores']} cores of {raw['cpu']}", fontsize=10)
    figure.savefig(path, dpi=110)


def _draw_cost(axis: Any, sizes: Sequence[Child]) -> None:
    for colour, encoder in enumerate(dict.fromkeys(child["encoder"] for child in sizes)):
        ours = sorted((child for child in sizes if child["encoder"] == encoder), key=lambda child: child["chunks"])
        chunks = [child["chunks"] for child in ours]
        axis.plot(chunks, [child["wall_s"] for child in ours], "o-", color=f"C{colour}", label=f"all, {encoder}")
        if colour == 0:
            for mark, stage in zip("sv^xd", ours[-1]["stage_s"], strict=False):
                seconds = [child["stage_s"].get(stage, float("nan")) for child in ours]
                axis.plot(chunks, seconds, f"{mark}:", color="grey", markersize=4, label=f"{stage}, {encoder}")
    axis.set(xscale="log", yscale="log", xlabel="chunks", ylabel="seconds")
    axis.set_title("Cost against size", fontsize=10)
    axis.legend(fontsize=7)


def _draw_memory(axis: Any, sizes: Sequence[Child]) -> None:
    random = sorted(
        (child for child in sizes if child["encoder"] == "random unit vectors"), key=lambda child: child["chunks"]
    )
    chunks = [child["chunks"] for child in random]
    axis.plot(chunks, [child["peak_rss_mb"] for child in random], "o-", label="peak, mapped files included (VmHWM)")
    axis.plot(chunks, [child["peak_anonymous_mb"] for child in random], "s-", label="peak of what is no file's")
    axis.plot(chunks, [child["index"]["bytes"] / 1e6 for child in random], "k:", label="the index")
    axis.set(xscale="log", xlabel="chunks", ylabel="MB", ylim=(0, None))
    axis.set_title("Memory of a build, random vectors", fontsize=10)
    axis.legend(fontsize=8)


def _draw_stages(axis: Any, raw: Mapping[str, Any]) -> None:
    children = [("with the encoder", {**raw["share"]["build"][0]["stage_s"]}, raw["share"]["build"][0]["wall_s"])]
    largest = max(raw["sizes"], key=lambda child: child["chunks"])
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
    if "retro_pytorch" not in raw:
        axis.set_axis_off()
        axis.text(0.5, 0.5, "peers were not measured", ha="center", transform=axis.transAxes)
        return
    retro, index = raw["retro_pytorch"], raw["autofaiss"]
    bars = [
        ("text to neighbours\nours", _median(retro["ours"], "seconds"), "C0"),
        ("retro-pytorch", _median(retro["retro_pytorch"], "seconds"), "C1"),
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
