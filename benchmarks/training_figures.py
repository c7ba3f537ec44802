"""From the trials of `training.py` to its figures, its printed lines and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

GOALS = {
    "step_over_flops": 1.10,
    "vs_retro_pytorch_train": 3.0,
    "vs_retro_pytorch_train_same_dtype": 1.2,
    "live_wait_share": 0.03,
    "decode_over_twin": 0.85,
}


def summarise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The figures, every one of them from `raw` alone; None where a peer or a GPU was not there.

    `step_over_twin`: seconds of a RETRO step over those of the GPT of the same decoder, medians of trials in turns, and by
    processor time, which other work on the machine disturbs less; `flops_over_twin` the ratio of what they compute;
    `step_over_flops` the first over the second. `memory_over_twin`: peak memory since before the model was built.
    `vs_retro_pytorch_train_same_dtype`: tokens per second over the peer's at equal shapes, the lowest over dtypes;
    `vs_retro_pytorch_train` the best of ours, compiled or not, over the best of the peer's. `live_wait_share`: of the time
    of all steps that are fed by the running retriever. `decode_over_twin`: tokens per second of the steps, the lowest over
    numbers of sequences; `vs_retro_pytorch_decode`: of one sequence, prompt included.
    """
    retro, twin = raw["twin"]["retro"], raw["twin"]["twin"]
    step, flops = _step_s(retro) / _step_s(twin), retro["flops"] / twin["flops"]
    live = raw["live"]["live"]
    decode = {
        sequences: _median(trials, "twin") / _median(trials, "retro") for sequences, trials in raw["decode"].items()
    }
    peer = raw.get("retro_pytorch")
    figures: dict[str, Any] = {
        "step_over_twin": round(step, 4),
        "step_over_twin_by_cpu_time": round(float(median(retro["cpu_s"]) / median(twin["cpu_s"])), 4),
        "flops_over_twin": round(flops, 4),
        "step_over_flops": round(step / flops, 4),
        "memory_over_twin": round(retro["peak_mb"] / twin["peak_mb"], 4),
        "vs_retro_pytorch_train": None if peer is None else round(best(peer["ours"]) / best(peer["retro_pytorch"]), 4),
        "vs_retro_pytorch_train_same_dtype": None if peer is None else round(min(same_dtype(peer).values()), 4),
        "live_wait_share": round(sum(t["waited_s"] for t in live) / sum(t["seconds"] for t in live), 5),
        "decode_over_twin": round(min(decode.values()), 4),
        "vs_retro_pytorch_decode": None
        if peer is None
        else round(
            median(peer["decode"]["retro_pytorch"])
            / median(each["prefill_s"] + each["step_s"] for each in peer["decode"]["ours"]),
            4,
        ),
        "recompiles": None if raw["compile"] is None else raw["compile"]["graphs_more"],
        "mfu": None,
        "mfu_reason": raw["mfu"].get("reason"),
    }
    if "reason" not in raw["mfu"]:
        figures["mfu"] = {
            size: round(side["flops"] / (_step_s(side) * raw["mfu"]["peak_flops"]), 4)
            for size, side in raw["mfu"]["sizes"].items()
        }
    return figures


def best(sides: Mapping[str, Mapping[str, Any]]) -> float:
    """Steps per second of the quickest side, in the same batches for all."""
    return 1 / min(_step_s(side) for side in sides.values())


def same_dtype(peer: Mapping[str, Any]) -> dict[str, float]:
    """By dtype, the peer's seconds over ours, not compiled on either side."""
    return {dtype: _step_s(theirs) / _step_s(peer["ours"][dtype]) for dtype, theirs in peer["retro_pytorch"].items()}


def _step_s(side: Mapping[str, Any]) -> float:
    return float(median(side["seconds"]))


def _median(trials: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(median(trial[name]["step_s"] for trial in trials))


def report(result: Mapping[str, Any]) -> list[str]:
    """The lines that are printed."""
    raw = result["raw"]
    lines = [
        f"{raw['cores']} cores of {raw['cpu']}; {raw['threads']} threads; load {raw['load_1m_before']} before, "
        f"{raw['load_1m_after']} after",
        f"{raw['size']['sequences']} sequences of {raw['size']['chunks']} chunks a step",
        f"{'':<34} {'parameters':>12} {'s/step':>8} {'tokens/s':>9} {'peak MB':>8}",
    ]
    sides = [("RETRO", raw["twin"]["retro"]), ("GPT twin", raw["twin"]["twin"])]
    if "retro_pytorch" in raw:
        for name, side in (("ours, equal shapes", "ours"), ("retro-pytorch", "retro_pytorch")):
            sides += [(f"{name}, {kind}", each) for kind, each in raw["retro_pytorch"][side].items()]
    for name, side in sides:
        speed = raw["tokens"] / _step_s(side)
        lines.append(
            f"{name:<34} {side['parameters']:>12,} {_step_s(side):>8.3f} {speed:>9.1f} {side['peak_mb']:>8.0f}"
        )
    for sequences, trials in raw["decode"].items():
        made = int(sequences) * raw["size"]["decode_tokens"]
        speeds = [f"{side} {made / _median(trials, side):.1f} tokens/s" for side in ("retro", "twin")]
        lines.append(f"decoding {sequences} sequences: {', '.join(speeds)}")
    return lines + [f"{name:<34} {value}" for name, value in result.items() if name != "raw"]


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Speed and memory of the sides, and decoding."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    raw = result["raw"]
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _draw_twin(axes[0, 0], result)
    _draw_peer(axes[0, 1], raw)
    _draw_decode(axes[1, 0], raw)
    _draw_live(axes[1, 1], result)
    figure.suptitle(
        f"Training a {raw['twin']['retro']['parameters'] / 1e6:.0f}M RETRO on {raw['threads']} threads of {raw['cpu']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def _draw_twin(axis: Any, result: Mapping[str, Any]) -> None:
    names = {"flops_over_twin": "FLOPs", "step_over_twin": "seconds", "memory_over_twin": "peak memory"}
    values = [result[name] for name in names]
    bars = axis.bar(list(names.values()), values, color=["lightgrey", "C0", "C2"], width=0.55)
    axis.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=9)
    axis.axhline(1, color="black", linewidth=0.8)
    limit = GOALS["step_over_flops"] * result["flops_over_twin"]
    axis.hlines(limit, 0.65, 1.35, color="C3", linestyles="dashed", label="goal: 1.10 times the FLOPs")
    axis.set(ylim=(0, max(*values, limit) * 1.25), ylabel="RETRO over its GPT twin")
    axis.set_title("A training step, the same decoder", fontsize=10)
    axis.legend(fontsize=8)


def _draw_peer(axis: Any, raw: Mapping[str, Any]) -> None:
    peer = raw.get("retro_pytorch")
    if peer is None:
        axis.set_axis_off()
        axis.text(0.5, 0.5, "retro-pytorch was not measured", ha="center", transform=axis.transAxes)
        return
    rows = [(f"ours, {kind}", side, "C0") for kind, side in peer["ours"].items()]
    rows += [(f"retro-pytorch, {kind}", side, "C1") for kind, side in peer["retro_pytorch"].items()]
    for place, (_, side, colour) in enumerate(rows):
        speed = raw["tokens"] / _step_s(side)
        axis.barh(place, speed, color=colour)
        axis.text(speed, place, f" {speed:.0f}", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set(xlabel="tokens per second")
    axis.set_title("Training at equal shapes", fontsize=10)


def _draw_decode(axis: Any, raw: Mapping[str, Any]) -> None:
    size, peer = raw["size"], raw.get("retro_pytorch")
    for place, (sequences, trials) in enumerate(raw["decode"].items()):
        made = int(sequences) * size["decode_tokens"]
        for shift, side, colour in ((-0.2, "twin", "lightgrey"), (0.2, "retro", "C0")):
            speed = made / _median(trials, side)
            axis.bar(place + shift, speed, 0.38, color=colour, label=_DECODERS[side] if place == 0 else None)
            axis.text(place + shift, speed, f"{speed:.0f}", ha="center", va="bottom", fontsize=8)
    labels = [f"{sequences} at a time" for sequences in raw["decode"]]
    if peer is not None:
        place = len(labels)
        ours = size["decode_tokens"] / median(each["prefill_s"] + each["step_s"] for each in peer["decode"]["ours"])
        theirs = size["decode_tokens"] / median(peer["decode"]["retro_pytorch"])
        for shift, speed, colour, label in ((-0.2, theirs, "C1", "retro-pytorch"), (0.2, ours, "C0", None)):
            axis.bar(place + shift, speed, 0.38, color=colour, label=label)
            axis.text(place + shift, speed, f"{speed:.1f}", ha="center", va="bottom", fontsize=8)
        labels.append("1, equal shapes,\nprompt included")
    axis.set_xticks(range(len(labels)), labels)
    axis.margins(y=0.15)
    axis.set(ylabel="tokens per second")
    axis.set_title(f"Decoding {size['decode_tokens']} tokens after {size['prompt']}", fontsize=10)
    axis.legend(fontsize=8)


_DECODERS = {"twin": "GPT twin", "retro": "RETRO"}


def _draw_live(axis: Any, result: Mapping[str, Any]) -> None:
    live = result["raw"]["live"]
    for place, name in enumerate(("cache", "live")):
        shares = [100 * trial["waited_s"] / trial["seconds"] for trial in live[name]]
        axis.plot([place] * len(shares), shares, "o", color=f"C{place}")
    axis.axhline(100 * GOALS["live_wait_share"], color="C3", linestyle="dashed", label="goal: at most 3%")
    axis.set_xticks([0, 1], ["neighbour cache", "running retriever"])
    axis.set(xlim=(-0.6, 1.6), ylim=(0, None), ylabel="% of the time spent waiting for neighbours")
    seconds = [sum(trial["seconds"] for trial in live[name]) for name in ("live", "cache")]
    axis.set_title(f"Waiting; live rounds took {seconds[0] / seconds[1]:.3f} times the cached ones", fontsize=10)
    axis.legend(fontsize=8)
