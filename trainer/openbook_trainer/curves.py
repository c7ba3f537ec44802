"""The curves of a run's metrics.jsonl, as one picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError
from openbook_trainer.metrics import flat

Series = dict[str, tuple[list[int], list[float]]]
_HELD_OUT = {"loss_off": "held out, OFF", "loss_on": "held out, ON", "loss_shuffled": "held out, shuffled"}
# Title, unit, and which figures a panel shows under what names.
_PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("loss", "nats per token", {"loss": "training", **_HELD_OUT}),
    ("gradient norm, before clipping", "", {"gradient_norm": ""}),
    ("learning rate", "", {"learning_rate": ""}),
    ("speed", "tokens per second", {"tokens_per_s": ""}),
    ("of the peak, and of the time", "%", {"mfu": "MFU", "neighbour_wait_share": "waiting for neighbours"}),
    ("memory", "GB", {"resident_memory_bytes": "resident", "device_memory_bytes": "GPU, most"}),
    ("gates", "", {}),
)
_FACTORS: dict[str, float] = {
    "mfu": 100.0,
    "neighbour_wait_share": 100.0,
    "resident_memory_bytes": 1e-9,
    "device_memory_bytes": 1e-9,
}
_LOG_SCALE = ("gradient norm, before clipping",)


def read_curves(run: Path) -> Series:
    """By name, steps and values of each figure in `run/metrics.jsonl`; a last line that was cut off is left out.

    Raises InputError where there is none, or no line with a step in it.
    """
    path = run / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); name the folder of a run, its `out`", field="run"
        ) from error
    series: Series = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = flat(json.loads(line))
            step = int(record.pop("step") or 0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                continue
            raise InputError(f"{path}, line {number}: no record of a step ({error!r})", field="run") from error
        for name, value in record.items():
            if isinstance(value, (int, float)):
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    if not series:
        raise InputError(f"{path} has no step yet", field="run")
    return series


def draw_curves(run: Path, path: Path) -> None:
    """Write the PNG. Raises InputError, also where it cannot be written."""
    from matplotlib.figure import Figure

    series = read_curves(run)
    gates = {name: f"layer {name.removeprefix('gates/')}" for name in series if name.startswith("gates/")}
    panels = [(title, unit, names or gates) for title, unit, names in _PANELS]
    panels = [panel for panel in panels if any(name in series for name in panel[2])]
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for axis, (title, unit, names) in zip(axes, panels, strict=False):
        _draw(axis.plot, series, names)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if title in _LOG_SCALE:
            axis.set_yscale("log")
        if any(names.values()):
            axis.legend(fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    skipped = int(max(series.get("skipped_steps", ([], [0.0]))[1]))
    figure.suptitle(run.name + (f", skipped steps: {skipped}" if skipped else ""), fontsize=11)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", field="out") from error


def _draw(plot: Callable[..., Any], series: Series, names: dict[str, str]) -> None:
    for name, label in names.items():
        if name in series:
            steps, values = series[name]
            marker = "o" if name in _HELD_OUT or len(steps) == 1 else ""
            scaled = [value * _FACTORS.get(name, 1.0) for value in values]
            plot(steps, scaled, label=label, marker=marker, markersize=4, linewidth=1.3)
