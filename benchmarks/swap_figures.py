"""From what `swap.py` saw to its figures and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOVE_GOAL_S, MEMORY_GOAL = 1.0, 1.2


def summarise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The figures, every one of them from `raw` alone.

    `requests_in_window`: under way between the prepare of a swap and the moment when the edition it made superfluous was
    unloaded everywhere. `p99_ratio`: of them over all others. `activate_s`, `rollback_s`: the slowest, from the call until
    every router had moved. `private_memory_ratio`: most memory of the serving processes that is no file's, over the
    same with one snapshot loaded and no swap. `checking_mb`: most memory of the processes that check files
    before a load.
    """
    size, soak = raw["size"], raw["soak"]
    calls, swaps, memory = soak["calls"], soak["swaps"], soak["memory"]
    inside_N = in_window(calls, swaps)
    ms_N = np.asarray(calls["ms"])
    p99_in, p99_out = (_p99(ms_N[mask_N]) for mask_N in (inside_N, ~inside_N))
    serving = [serving for _, serving, _ in memory["samples"]]
    return {
        "swaps": len(swaps),
        "requests": len(ms_N),
        "requests_in_window": int(inside_N.sum()),
        "failed": len(calls["errors"]),
        "mixed": calls["mixed"],
        "restarts": calls["restarts"],
        "p99_ratio": None if p99_in is None or p99_out is None else round(p99_in / p99_out, 3),
        "p99_ms_in_window": p99_in,
        "p99_ms_outside": p99_out,
        "activate_s": max((swap["activate_s"] for swap in swaps), default=None),
        "rollback_s": max((swap["rollback_s"] for swap in swaps if "rollback_s" in swap), default=None),
        "private_memory_ratio": round(max(serving, default=memory["one_snapshot"]) / memory["one_snapshot"], 3),
        "private_mb": round(max(serving, default=0) / 1e6, 1),
        "mapped_mb": round(memory["mapped"] / 1e6, 1),
        "checking_mb": round(max((checking for *_, checking in memory["samples"]), default=0) / 1e6, 1),
        "guard_off_mixed": raw["guard_off"]["mixed"],
        "goals_missed": _missed(size, raw, inside_N, p99_in, p99_out, serving),
    }


def passed(result: Mapping[str, Any]) -> bool:
    return not result["goals_missed"]


def in_window(calls: Mapping[str, Any], swaps: Sequence[Mapping[str, float]]) -> NDArray[np.bool_]:
    """Which calls were under way during a swap."""
    begin_N = np.asarray(calls["due"])
    end_N = begin_N + np.asarray(calls["ms"]) / 1e3
    inside_N = np.zeros(len(begin_N), dtype=np.bool_)
    for swap in swaps:
        inside_N |= (begin_N <= swap["end"]) & (end_N >= swap["start"])
    return inside_N


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Every request's latency over time with the swaps, the distribution inside and outside of them, memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    raw = result["raw"]
    calls, swaps, memory = (raw["soak"][part] for part in ("calls", "swaps", "memory"))
    inside_N, ms_N, due_N = in_window(calls, swaps), np.asarray(calls["ms"]), np.asarray(calls["due"])
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    over_time, rest = figure.subfigures(2, 1)
    axis = over_time.subplots()
    axis.scatter(due_N, ms_N, s=2, c=np.where(inside_N, "C1", "C0"))
    for swap in swaps:
        axis.axvspan(swap["start"], swap["end"], color="C1", alpha=0.12, linewidth=0)
    axis.set(yscale="log", xlabel="seconds", ylabel="ms", title="Latency of each request; shaded: a swap")
    latency, private = rest.subplots(1, 2)
    for name, mask_N, colour in (("during a swap", inside_N, "C1"), ("otherwise", ~inside_N, "C0")):
        ordered_N = np.sort(ms_N[mask_N])
        if len(ordered_N):
            latency.plot(ordered_N, 1 - np.arange(len(ordered_N)) / len(ordered_N), color=colour, label=name)
    latency.set(xscale="log", yscale="log", xlabel="ms", ylabel="share of requests that took longer")
    latency.legend()
    seconds = [second for second, *_ in memory["samples"]]
    private.plot(seconds, [serving / 1e6 for _, serving, _ in memory["samples"]], label="serving, no file's")
    private.plot(seconds, [checking / 1e6 for *_, checking in memory["samples"]], label="checking, no file's")
    private.axhline(memory["one_snapshot"] / 1e6, color="grey", linestyle=":", label="serving, one snapshot")
    private.set(xlabel="seconds", ylabel="MB", ylim=(0, None))
    private.legend()
    figure.suptitle(
        f"{result['swaps']} swaps under {raw['soak']['offered_per_s']:.0f} requests a second, {raw['size']['chunks']} chunks, "
        f"{raw['cores']} cores of {raw['cpu']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def _p99(ms_N: NDArray[np.float64]) -> float | None:
    return round(float(np.percentile(ms_N, 99)), 2) if len(ms_N) else None


def _missed(
    size: Mapping[str, Any],
    raw: Mapping[str, Any],
    inside_N: NDArray[np.bool_],
    p99_in: float | None,
    p99_out: float | None,
    serving: Sequence[int],
) -> list[str]:
    calls, swaps = raw["soak"]["calls"], raw["soak"]["swaps"]
    slow = [name for swap in swaps for name in ("activate_s", "rollback_s") if swap.get(name, 0) > MOVE_GOAL_S]
    goals = {
        "failed": not calls["errors"],
        "mixed": not calls["mixed"],
        "swaps": len(swaps) >= size["swaps"],
        "requests": len(calls["ms"]) >= size["requests"],
        "requests_in_window": int(inside_N.sum()) >= size["in_window"],
        "p99_ratio": p99_in is not None and p99_out is not None and p99_in <= size["p99_goal"] * p99_out,
        "activate_s": "activate_s" not in slow,
        "rollback_s": "rollback_s" not in slow,
        "private_memory_ratio": max(serving, default=0) <= MEMORY_GOAL * raw["soak"]["memory"]["one_snapshot"],
        "guard_off_mixed": raw["guard_off"]["mixed"] > 0,
    }
    return [name for name, met in goals.items() if not met]
