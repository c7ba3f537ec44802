"""The retriever's figures from the trials, as text and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Trials = Sequence[Mapping[str, Any]]
_TICK_S = 0.01
_NAMES = {
    "bare": "bare Faiss",
    "bare_mapped": "bare Faiss, mapped",
    "fast_scan": "bare Faiss, PQ fast-scan",
    "openbook": "Openbook",
    "pickle": "pickled calls",
    "http": "FastAPI + Faiss",
    "grpc": "gRPC + Faiss, two hops",
}


def summarise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Every figure follows from `raw`: ratios are of medians over the trials."""
    of_64, of_1, singles = (raw["parts"][name] for name in ("calls_of_64", "calls_of_1", "singles_of_32_callers"))
    bare_per_s = per_s(of_64["bare"])
    figures: dict[str, Any] = {
        "index": f"IVF{raw['size']['lists']},SQ8 nprobe {raw['size']['nprobe']}, {raw['size']['rows']} x "
        f"{raw['size']['dimension']}, k {raw['k']}",
        "cpu_ratio_64": round(cpu_us(of_64["openbook"]) / cpu_us(of_64["bare"]), 3),
        "cpu_ratio_1": round(cpu_us(of_1["openbook"]) / cpu_us(of_1["bare"]), 3),
        "throughput_ratio_64": round(per_s(of_64["openbook"]) / bare_per_s, 3),
        "added_p50_ms": round(p50_ms(of_1["openbook"]) - p50_ms(of_1["bare"]), 3),
        "singles_ratio_32_callers": round(per_s(singles["openbook"]) / bare_per_s, 3),
    }
    for name in ("pickle", "http", "grpc"):
        figures[f"vs_{name}_64"] = round(per_s(of_64["openbook"]) / per_s(of_64[name]), 3)
        figures[f"vs_{name}_1"] = round(p50_ms(of_1[name]) / p50_ms(of_1["openbook"]), 3)
        figures[f"vs_{name}_32_callers"] = round(per_s(singles["openbook"]) / per_s(singles[name]), 3)
    # gRPC's own share: what any router and shard in Python cost.
    for part, trials in (("64", of_64), ("1", of_1), ("32_callers", singles)):
        figures[f"cpu_over_grpc_{part}"] = round(cpu_us(trials["openbook"]) / cpu_us(trials["grpc"]), 3)
    if raw.get("growth"):
        figures["latency_power"] = round(_power(raw["growth"], "p50_ms"), 3)
        figures["memory_power"] = round(_power(raw["growth"], "bytes"), 3)
    at_most = {"cpu_ratio_64": 1.1, "cpu_ratio_1": 2.5, "added_p50_ms": 1.0 if raw["load_1m_before"] < 0.5 else 1.5}
    at_least = {"throughput_ratio_64": 0.90, "singles_ratio_32_callers": 0.70}
    missed = [name for name, goal in at_most.items() if figures[name] > goal]
    figures["goals_missed"] = missed + [name for name, goal in at_least.items() if figures[name] < goal]
    return figures


def passed(result: Mapping[str, Any]) -> bool:
    return not result["goals_missed"]


def per_s(trials: Trials) -> float:
    """Queries a second."""
    return median(trial["queries"] / trial["seconds"] for trial in trials)


def cpu_us(trials: Trials) -> float:
    """Microseconds of processor time a query; at least what the kernel counts another process' time in."""
    return median(1e6 * max(trial["cpu_s"], _TICK_S) / trial["queries"] for trial in trials)


def p50_ms(trials: Trials) -> float:
    """Median latency of a call."""
    return median(latency for trial in trials for latency in trial["latencies_ms"])


def report(result: Mapping[str, Any]) -> Iterator[str]:
    """A table of each part, then the figures."""
    raw = result["raw"]
    for part, sides in raw["parts"].items():
        yield f"{part:<26} {'queries/s':>10} {'cpu us/query':>13} {'p50 ms/call':>12}"
        for name, trials in sides.items():
            yield f"  {_NAMES[name]:<24} {per_s(trials):>10.0f} {cpu_us(trials):>13.0f} {p50_ms(trials):>12.2f}"
    for line in raw.get("growth", ()):
        yield f"{line['rows']:>10} rows, {line['lists']} lists: {line['p50_ms']:.2f} ms, {line['bytes'] / 1e6:.0f} MB"
    for name, value in result.items():
        if name != "raw":
            yield f"{name:<28} {value}"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Throughput and processor time of each side, and growth where it was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    raw = result["raw"]
    columns = 3 if raw.get("growth") else 2
    figure = Figure(figsize=(5 * columns, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    parts = raw["parts"]
    _bars(axes[0], {part: {name: per_s(t) for name, t in sides.items()} for part, sides in parts.items()})
    axes[0].set_ylabel("queries a second")
    _bars(axes[1], {part: {name: cpu_us(t) for name, t in sides.items()} for part, sides in parts.items()})
    axes[1].set_ylabel("processor time a query (us)")
    axes[1].legend(fontsize=7)
    if columns == 3:
        _draw_growth(axes[2], raw["growth"])
    figure.suptitle(f"{result['index']} on {raw['cores']} cores of {raw['cpu']}", fontsize=9)
    figure.savefig(path, dpi=110)


def _bars(axis: Any, parts: Mapping[str, Mapping[str, float]]) -> None:
    for place, name in enumerate(_NAMES):
        spots = [(number, values[name]) for number, values in enumerate(parts.values()) if name in values]
        axis.bar([spot + 0.13 * place for spot, _ in spots], [value for _, value in spots], 0.12, label=_NAMES[name])
    axis.set_xticks(
        [number + 0.33 for number in range(len(parts))], [part.replace("_", " ") for part in parts], fontsize=8
    )
    axis.set_yscale("log")


def _draw_growth(axis: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    rows = [line["rows"] for line in lines]
    for key, label, power in (("p50_ms", "ms a query", 0.5), ("bytes", "bytes", 1.0)):
        values = [line[key] for line in lines]
        scale = values[0] / rows[0] ** power
        (drawn,) = axis.plot(rows, [value / values[0] for value in values], "o-", label=label)
        expected = [scale * count**power / values[0] for count in rows]
        axis.plot(rows, expected, "--", color=drawn.get_color(), label=f"rows^{power}")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("vectors")
    axis.set_ylabel("times that of the smallest")
    axis.legend(fontsize=7)


def _power(lines: Sequence[Mapping[str, Any]], key: str) -> float:
    """Slope of the logarithms by least squares."""
    x = [math.log(line["rows"]) for line in lines]
    y = [math.log(line[key]) for line in lines]
    centre_x, centre_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - centre_x) * (b - centre_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - centre_x) ** 2 for a in x)
