"""From the trials of `embedder.py` to its figures, its printed lines and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Trials = Sequence[Mapping[str, float]]
# Shares of the mean resident memory: what a soak may grow by over its second half, and how far it may swing.
MOST_GROWTH, MOST_RANGE = 0.05, 0.15


def texts_per_s(trials: Trials) -> float:
    """Median over the trials."""
    return median(trial["texts"] / trial["seconds"] for trial in trials)


def summarise(raw: dict[str, Any]) -> dict[str, Any]:
    """The figures, every one of them from `raw` alone; None where a peer was not measured.

    A ratio is the median, over the rounds, of one side's texts a second over the other's in the same round; `_by_cpu_time`
    the same for each second of processor time, callers included: other work on the machine hardly moves it, but it does not
    see a core that idles. `vs_sentence_transformers_same_dtype` and `_fp32_best` are against the library at its best
    settings, `_fp32` against its default: float32, batches of 32. `vs_infinity` is ours over infinity's server in the same
    dtype at its best settings, both through HTTP with 32 texts a call; `_default` against that server with nothing set,
    which computes in float32. `cosine_min` is of float32, `cosine_min_served` of the dtype that is served.
    """
    offline, served, dtype = raw["offline"], raw["served"], raw["dtype"]
    same, exact = f"sentence_transformers_{dtype}", "sentence_transformers_float32"
    default = "sentence_transformers_default"
    many, single = served["calls_of_32"], served["calls_of_1"]
    cosines = {name: [part[name]["min"] for part in raw["cosines"].values()] for name in ("float32", dtype)}
    figures = {
        "vs_sentence_transformers_same_dtype": _ratio(offline["chunks"], "ours", same),
        "vs_sentence_transformers_same_dtype_mixed": _ratio(offline["mixed"], "ours", same),
        "vs_sentence_transformers_fp32": _ratio(offline["chunks"], "ours", default),
        "vs_sentence_transformers_fp32_mixed": _ratio(offline["mixed"], "ours", default),
        "vs_sentence_transformers_fp32_best": _ratio(offline["chunks"], "ours", exact),
        "vs_sentence_transformers_fp32_best_mixed": _ratio(offline["mixed"], "ours", exact),
        "grpc_over_bare": _ratio(many, "grpc", "bare"),
        "grpc_singles_over_bare": _ratio(single, "grpc", "bare"),
        "http_over_bare": _ratio(many, "http", "bare"),
        "http_singles_over_bare": _ratio(single, "http", "bare"),
        "grpc_over_bare_mixed": _ratio(served["mixed_calls_of_4"], "grpc", "bare"),
        "vs_infinity": _ratio(many, "http", "infinity"),
        "vs_infinity_singles": _ratio(single, "http", "infinity"),
        "vs_infinity_mixed": _ratio(served["mixed_calls_of_4"], "http", "infinity"),
        "vs_infinity_grpc": _ratio(many, "grpc", "infinity"),
        "vs_infinity_default": _ratio(many, "http", "infinity_default"),
        "vs_infinity_default_singles": _ratio(single, "http", "infinity_default"),
        "vs_infinity_default_mixed": _ratio(served["mixed_calls_of_4"], "http", "infinity_default"),
        "cosine_min": min(cosines["float32"], default=None),
        "cosine_min_served": min(cosines[dtype], default=None),
        "offline_chunks_per_s": round(texts_per_s(offline["chunks"]["ours"]), 2),
        "grpc_chunks_per_s": round(texts_per_s(many["grpc"]), 2),
        "grpc_singles_per_s": round(texts_per_s(single["grpc"]), 2),
        "padding_share": _padding_share(many["grpc"]),
        "padding_share_mixed": _padding_share(served["mixed_calls_of_4"]["grpc"]),
        "start_s": round(median(raw["start_s"]), 2),
    }
    for name, part, ours, theirs in (
        ("vs_sentence_transformers_same_dtype", offline["chunks"], "ours", same),
        ("vs_sentence_transformers_same_dtype_mixed", offline["mixed"], "ours", same),
        ("grpc_over_bare", many, "grpc", "bare"),
        ("grpc_singles_over_bare", single, "grpc", "bare"),
        ("vs_infinity", many, "http", "infinity"),
        ("vs_infinity_singles", single, "http", "infinity"),
    ):
        figures[f"{name}_by_cpu_time"] = _ratio(part, ours, theirs, "cpu_s")
    for part in raw["open_loop"]:
        name = f"at_{round(100 * part['share'])}_percent"
        figures |= {f"p50_ms_{name}": round(part["p50_ms"], 1), f"p99_ms_{name}": round(part["p99_ms"], 1)}
    return figures | (memory_figures(raw["soak"]["samples"]) if "soak" in raw else {})


def memory_figures(samples: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Of [seconds, resident bytes] over the second half of the time, when the allocator has filled.

    `resident_flat`: by the line of least squares it grows over that half by at most MOST_GROWTH of its mean, and its
    highest and lowest value are at most MOST_RANGE of the mean apart.
    """
    kept = [(second, size) for second, size, *_ in samples if second >= samples[-1][0] / 2]
    middle_s, middle = (sum(values) / len(kept) for values in zip(*kept, strict=True))
    spread = sum((second - middle_s) ** 2 for second, _ in kept)
    slope = sum((second - middle_s) * (size - middle) for second, size in kept) / spread if spread else 0.0
    growth = slope * (kept[-1][0] - kept[0][0])
    width = max(size for _, size in kept) - min(size for _, size in kept)
    return {
        "resident_flat": growth <= MOST_GROWTH * middle and width <= MOST_RANGE * middle,
        "resident_mb": round(middle / 1e6, 1),
        "resident_growth_mb": round(growth / 1e6, 2),
        "resident_slope_mb_per_hour": round(slope * 3600 / 1e6, 2),
        "resident_range_mb": round(width / 1e6, 2),
    }


def _ratio(trials: Mapping[str, Trials], ours: str, theirs: str, time: str = "seconds") -> float | None:
    if theirs not in trials:
        return None
    rounds = zip(trials[ours], trials[theirs], strict=True)
    return round(median(our["texts"] / our[time] * their[time] / their["texts"] for our, their in rounds), 4)


def _padding_share(trials: Trials) -> float:
    """Of all tokens that the network read."""
    padded = sum(trial["padded_tokens"] for trial in trials)
    return round(1 - sum(trial["tokens"] for trial in trials) / padded, 4)


def report(result: dict[str, Any]) -> list[str]:
    """The lines that are printed."""
    raw = result["raw"]
    if "geometry" in raw:
        return [f"{name:<24} {value}" for name, value in result.items() if name != "raw"]
    lines = [
        f"{raw['cores']} cores of {raw['cpu']}; load {raw['load_1m_before']} before, {raw['load_1m_after']} after",
        f"{raw['model']} in {raw['dtype']}; seconds of 16 x 64 tokens: {raw['dtype_probe']['seconds']}",
    ]
    parts = {**raw["offline"], **raw["served"]}
    for part, sides in parts.items():
        where = "offline" if part in raw["offline"] else "served"
        lines += [
            f"{where} {part:<18} {side:<32} {texts_per_s(trials):8.1f} texts/s (median of {len(trials)})"
            for side, trials in sides.items()
        ]
    return lines + [f"{name:<42} {value}" for name, value in result.items() if name != "raw"]


def plot(result: dict[str, Any], path: Path) -> None:
    """Throughput of every side with all its trials, latency over time, and memory where there was a soak."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    raw = result["raw"]
    figure = Figure(figsize=(12, 9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _draw_rates(axes[0, 0], raw["offline"], f"Offline, texts to vectors ({raw['dtype']})")
    _draw_rates(axes[0, 1], raw["served"], "Served, 16 callers at once")
    _draw_latency(axes[1, 0], raw["open_loop"])
    _draw_memory(axes[1, 1], raw.get("soak"))
    figure.suptitle(f"{raw['model']} on {raw['cores']} cores of {raw['cpu']}", fontsize=10)
    figure.savefig(path, dpi=110)


def _draw_rates(axis: Any, parts: Mapping[str, Mapping[str, Trials]], title: str) -> None:
    sides = sorted({side for part in parts.values() for side in part})
    height = 0.8 / len(sides)
    for row, side in enumerate(sides):
        for place, part in enumerate(parts.values()):
            if side not in part:
                continue
            y, rate = place + (row - len(sides) / 2 + 0.5) * height, texts_per_s(part[side])
            axis.barh(y, rate, height * 0.9, color=f"C{row}", alpha=0.75, label=side if place == 0 else None)
            rates = [trial["texts"] / trial["seconds"] for trial in part[side]]
            axis.plot(rates, [y] * len(rates), "k|", markersize=6)
            axis.text(rate * 0.02, y, f"{rate:.0f}", va="center", fontsize=8, color="white")
    axis.set_yticks(range(len(parts)), [part.replace("_", " ") for part in parts])
    axis.invert_yaxis()
    axis.set_xlabel("texts/s: median, and each trial")
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=8)


def _draw_latency(axis: Any, parts: Sequence[Mapping[str, Any]]) -> None:
    for part in parts:
        ordered = sorted(part["latencies_ms"])
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        label = f"{part['share']:.0%}: {part['rate']:.0f}/s, p50 {part['p50_ms']:.0f} ms, p99 {part['p99_ms']:.0f} ms"
        axis.step(ordered, shares, where="post", label=label)
    axis.axhline(0.99, color="grey", linewidth=0.5)
    axis.set(xscale="log", xlabel="ms from the moment a call was due", ylabel="share of calls answered")
    axis.set_title("Calls of one text, Poisson arrivals at shares of capacity", fontsize=10)
    axis.legend(fontsize=8)


def _draw_memory(axis: Any, soak: Mapping[str, Any] | None) -> None:
    if soak is None:
        axis.set_axis_off()
        return
    seconds, sizes = zip(*(sample[:2] for sample in soak["samples"]), strict=True)
    axis.plot([second / 60 for second in seconds], [size / 1e6 for size in sizes])
    axis.set(xlabel="minutes", ylabel="resident MB", ylim=(0, None))
    slope = memory_figures(soak["samples"])["resident_slope_mb_per_hour"]
    axis.set_title(f"Mixed load, {soak['texts_per_s']:.0f} texts/s: {slope:+.1f} MB an hour", fontsize=10)
