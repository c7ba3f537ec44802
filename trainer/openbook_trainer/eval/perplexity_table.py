"""The figures of perplexity as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openbook_core.errors import ArgumentError
from openbook_trainer.eval.perplexity import SIDES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {"off": "OFF", "on": "ON", "half": "half", "shuffled": "shuffled"}
_COLOURS = {"off": "#2f6fb2", "on": "#d97b29", "half": "#e8b98a", "shuffled": "#9aa5b1"}


def table_lines(figures: dict[str, Any]) -> Iterator[str]:
    """Figures of each side with their standard errors, bits per byte by overlap, and the gate."""
    measures = [name for name in figures["off"] if not name.endswith("_standard_error")]
    yield (
        f"{figures['tokens_scored']} tokens of {figures['data']}, windows of {figures['block']}, standard errors "
        f"{figures['standard_errors']}"
    )
    yield f"{'':10}" + "".join(f"{name:>24}" for name in measures)
    for side in SIDES:
        if figures[side]:
            yield f"{_NAMES[side]:10}" + "".join(f"{_cell(figures[side], name):>24}" for name in measures)
    if figures["overlap"]:
        yield ""
        yield "bits per byte over the chunks with r, their overlap with what was retrieved, up to a limit"
        yield f"{'r up to':10}{'chunks':>14}" + "".join(f"{name:>24}" for name in ("OFF", "ON", "ON - OFF"))
        for row in figures["overlap"]:
            cells = "".join(f"{_cell(row[side], 'bits_per_byte'):>24}" for side in ("off", "on", "on_minus_off"))
            yield f"{row['r_at_most']:<10.3f}{row['chunks']:>14}{cells}"
        yield (
            f"{figures['tokens_without_neighbours']} of the tokens read no neighbour (a document's first chunk, chunks that "
            "found nothing); they count on every side"
        )
    yield figures["note"]
    if figures["gate"]:
        yield f"gate: {'passed' if figures['gate']['passed'] else 'NOT PASSED'}: {figures['gate']['verdict']}"
        yield from (f"  {reason}" for reason in figures["gate"]["reasons"])


def plot(figures: dict[str, Any], path: Path) -> None:
    """Nats per token of each side, and bits per byte by overlap where it is measured; PNG or SVG by suffix.

    Raises ArgumentError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(10 if figures["overlap"] else 4.5, 4.2), layout="constrained")
    axes = picture.subplots(1, 2 if figures["overlap"] else 1, squeeze=False)[0]
    _draw_sides(axes[0], figures)
    if figures["overlap"]:
        _draw_overlap(axes[1], figures["overlap"])
    if figures["gate"]:
        picture.suptitle(figures["gate"]["verdict"], fontsize=11)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--plot {path} cannot be written: {error}", field="plot") from error


def _draw_sides(axis: Axes, figures: dict[str, Any]) -> None:
    sides = [side for side in SIDES if figures[side]]
    for place, side in enumerate(sides):
        value = figures[side]["nats_per_token"]
        error = figures[side]["nats_per_token_standard_error"] or 0.0
        axis.errorbar(place, value, error, fmt="o", color=_COLOURS[side], capsize=4)
        axis.annotate(f"{value:.4f}", (place, value), (9, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_xticks(range(len(sides)), [_NAMES[side] for side in sides])
    axis.set_xlim(-0.5, len(sides) - 0.2)
    axis.set_ylabel("nats per token, ± 1 standard error")


def _draw_overlap(axis: Axes, rows: list[dict[str, Any]]) -> None:
    measured = [row for row in rows if row["off"]["bits_per_byte"] is not None]
    places = [row["r_at_most"] for row in measured]
    for side in ("off", "on"):
        values = [row[side]["bits_per_byte"] for row in measured]
        errors = [row[side]["bits_per_byte_standard_error"] or 0.0 for row in measured]
        axis.errorbar(places, values, errors, fmt="o-", color=_COLOURS[side], capsize=3, label=_NAMES[side])
    ticks = [f"{place:g}\n{row['chunks']}" for place, row in zip(places, measured, strict=True)]
    axis.set_xticks(places, ticks, fontsize=8)
    axis.set_xlabel("chunks with r up to this (below: how many)")
    axis.set_ylabel("bits per byte")
    axis.legend(frameon=False)


def _cell(found: dict[str, Any], name: str) -> str:
    value, error = found[name], found[f"{name}_standard_error"]
    return "-" if value is None else f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
