"""A run's figures, curve and picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openbook_core.errors import ArgumentError
from openbook_trainer.recall.config import RecallConfig

_SHARES = ("matching", "old", "retrieved", "matching_of_retrieved")
_COLOURS = ("#1f4e79", "#b02a37", "#777777")


def figures_of(config: RecallConfig, live: dict[str, Any]) -> dict[str, Any]:
    """Everything about a finished run: its settings and summary, its curve, and what was asked of the live retriever."""
    summary = json.loads((config.out / "summary.json").read_text(encoding="utf-8"))
    lines = (config.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    cpu = {each["step"]: each["train_cpu_seconds"] for each in records if "loss" in each}
    curve = [
        {"step": each["step"], "train_cpu_seconds": cpu.get(each["step"]), **each["validation"]}
        for each in records
        if "validation" in each
    ]
    training = [
        {name: each[name] for name in ("step", "train_cpu_seconds", "loss", "level")}
        for each in records
        if "loss" in each
    ]
    return {
        "config": config.model_dump(mode="json"),
        "training": summary,
        "live": live,
        "curve": curve,
        "loss": training,
    }


def lines_of(figures: dict[str, Any]) -> Iterator[str]:
    """A table for people."""
    live, training = figures["live"], figures["training"]
    yield f"trained for {training['train_cpu_seconds']} CPU seconds, {training['steps']} steps"
    oracle = training["held_out"]
    yield "given the right passage: " + ", ".join(f"{name} {value}" for name, value in oracle.items())
    yield f"{'live retrieval':18}" + "".join(f"{name:>24}" for name in _SHARES)
    for number, book in enumerate(live["books"], 1):
        yield f"{f'book {number}':18}" + "".join(f"{book[name]:>24.4f}" for name in _SHARES)
    yield f"no retrieval {live['none']:.4f}, shuffled {live['shuffled']:.4f}, {live['questions']} questions"
    same = live["weights_hash_before"] == live["weights_hash_after"]
    yield f"weights {'unchanged' if same else 'CHANGED'}: {live['weights_hash_after']}"


def plot(figures: dict[str, Any], path: Path) -> None:
    """Loss and exact match in validation over CPU time, and the answers through the live retriever; PNG or SVG by suffix.

    Raises ArgumentError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = picture.subplots(1, 3)
    loss, curve = figures["loss"], [each for each in figures["curve"] if each["train_cpu_seconds"] is not None]
    last = max(each["level"] for each in loss)
    for level in range(last + 1):
        points = [each for each in loss if each["level"] == level]
        minutes = [each["train_cpu_seconds"] / 60 for each in points]
        left.plot(minutes, [each["loss"] for each in points], ".", markersize=2, label=f"level {level + 1}")
    left.set(xlabel="CPU minutes", ylabel="loss (nats a token)", title="answers' loss by level")
    left.legend(frameon=False, markerscale=4, fontsize=8)
    minutes = [each["train_cpu_seconds"] / 60 for each in curve]
    for name, colour in zip(("matching", "one", "distractor"), _COLOURS, strict=True):
        label = {"matching": "k passages", "one": "the right one alone", "distractor": "a wrong passage's answer"}[name]
        middle.plot(minutes, [each[name] for each in curve], ".-", color=colour, label=label)
    middle.set(xlabel="CPU minutes", ylim=(0, 1.02), title="exact match, names never seen")
    middle.legend(frameon=False, fontsize=8)
    first, second = figures["live"]["books"]
    bars = {
        "first\nbook": first["matching"],
        "second\nbook": second["matching"],
        "old\nanswers": second["old"],
        "none": figures["live"]["none"],
        "shuffled": figures["live"]["shuffled"],
    }
    for place, value in enumerate(bars.values()):
        right.bar(place, value, 0.6, color=_COLOURS[0] if place < 2 else _COLOURS[2])
        right.annotate(f"{value:.3f}", (place, value), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    for place, book in enumerate((first, second)):
        right.hlines(book["retrieved"], place - 0.4, place + 0.4, color=_COLOURS[1], linestyle="--")
    right.set_xticks(range(len(bars)), list(bars), fontsize=8)
    right.set(ylim=(0, 1.08), title="live retrieval (dashed: found)")
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--png {path} cannot be written: {error}", field="png") from error
