"""The figures of tasks as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openbook_core.errors import ArgumentError

_COLUMNS = {"exact_match": "exact match", "f1": "F1", "right": "right", "stale": "stale"}
_COLOURS = {"closed-book": "#9aa5b1", "off": "#2f6fb2", "on": "#d97b29"}


def table_lines(figures: dict[str, Any]) -> Iterator[str]:
    """One line for each task and side: figures with their intervals, NVIDIA's F1, and the ceiling."""
    columns = _columns(figures)
    width = max(map(len, ["task", *figures["tasks"]]))
    heads = "".join(f" {_COLUMNS[column]:>22}" for column in columns)
    yield f"{'task':{width}} {'side':12} {'n':>5}{heads} {'NVIDIA F1':>10} {'ceiling':>8} {'shown':>6}"
    for name, task in figures["tasks"].items():
        for side, found in task["sides"].items():
            if found is None:
                if side == "on" and side in figures["sides"] and task["snapshot"]:
                    yield f"{name:{width}} {side:12} {figures['cross_attention']}: the answers would be those of off"
                continue
            cells = "".join(f" {_cell(found, column):>22}" for column in columns)
            nvidia = found["nvidia"]["f1"]
            ceiling = task["ceiling"] if side != "closed-book" else None
            shares = [ceiling and ceiling["in_passages"], ceiling and ceiling["in_shown"]]
            yield (
                f"{name:{width}} {side:12} {found['count']:>5}{cells} {_share(nvidia):>10} {_share(shares[0]):>8} "
                f"{_share(shares[1]):>6}"
            )


def _columns(figures: dict[str, Any]) -> list[str]:
    """Those that any side of any task has."""
    sides = [side for task in figures["tasks"].values() for side in task["sides"].values() if side]
    return [column for column in _COLUMNS if any(column in side for side in sides)]


def plot(figures: dict[str, Any], path: Path) -> None:
    """Bars of each figure by task and side with 95% intervals, the ceiling as a line; PNG or SVG by suffix.

    Raises ArgumentError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    names, columns = list(figures["tasks"]), _columns(figures)
    picture = Figure(figsize=(max(6.0, 2.2 * len(names) + 2), 3.2 * len(columns)), layout="constrained")
    axes = picture.subplots(len(columns), 1, sharex=True)
    for axis, column in zip(axes, columns, strict=True):
        for place, side in enumerate(_COLOURS):
            for number, name in enumerate(names):
                found = figures["tasks"][name]["sides"][side]
                if found is None or column not in found:
                    continue
                value, (low, high) = found[column], found[f"{column}_interval"]
                x = number + (place - 1) * 0.26
                axis.bar(x, value, 0.24, color=_COLOURS[side])
                axis.errorbar(x, value, [[value - low], [high - value]], color="#222222", capsize=3, linewidth=1)
                axis.annotate(f"{value:.2f}", (x, high), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        for number, name in enumerate(names):
            ceiling = figures["tasks"][name]["ceiling"]
            if ceiling and column != "stale":
                axis.hlines(ceiling["in_passages"], number - 0.4, number + 0.4, color="#b02a37", linestyle="--")
        axis.set_ylabel(_COLUMNS[column])
        axis.set_ylim(0, 1.05)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xticks(range(len(names)), names)
    drawn = [side for side in _COLOURS if any(figures["tasks"][name]["sides"][side] for name in names)]
    handles = [axes[0].bar(0, 0, color=_COLOURS[side]) for side in drawn]
    handles.append(axes[0].plot([], [], "--", color="#b02a37")[0])
    picture.legend(
        handles, [*drawn, "an answer is in the passages"], loc="outside upper center", ncols=4, frameon=False
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--png {path} cannot be written: {error}", field="png") from error


def _cell(found: dict[str, Any], column: str) -> str:
    if column not in found:
        return "-"
    low, high = found[f"{column}_interval"]
    return f"{found[column]:.3f} [{low:.3f}, {high:.3f}]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
