"""`openbook db plan`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openbook_core.errors import ArgumentError
from openbook_core.sizes import readable

if TYPE_CHECKING:
    from openbook_database.plan import Figure, Plan


def plan(
    chunks: Annotated[str, typer.Option(help="How many, for example 1e9.")],
    recall: Annotated[float, typer.Option(help="Recall@10 that is wanted.")] = 0.95,
    dimension: Annotated[int, typer.Option(help="Elements of a vector.")] = 384,
    memory: Annotated[str, typer.Option(help="Memory of a machine that serves a shard, or that builds.")] = "64GB",
    gpu: Annotated[bool, typer.Option("--gpu", help="Also with a GPU, from published figures.")] = False,
    rates: Annotated[
        Path | None, typer.Option(help="Rates of your machine: the result of benchmarks/database.py --json FILE.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a database will take: index recipe, disk, memory, shards, hours by stage; and where each number is from."""
    from openbook_database.plan import Rates, make_plan, parse_bytes, plan_record

    try:
        count = int(float(chunks))
    except (ValueError, OverflowError):
        raise ArgumentError(f"chunks: {chunks!r} is no number; give for example 1e9", field="chunks") from None
    made = make_plan(
        count,
        recall,
        Rates.read(rates),
        dimension=dimension,
        memory=parse_bytes(memory, "memory"),
        gpu=gpu,
    )
    print(json.dumps(plan_record(made), indent=1) if as_json else "\n".join(_lines(made)))


def _lines(plan: Plan) -> Iterator[str]:
    yield f"{plan.chunks:,} chunks, vectors of {plan.dimension} elements, recall@10 of {plan.recall:g}\n"
    yield f"index     {plan.recipe.factory}"
    yield from textwrap.wrap(plan.recall_note, 118, initial_indent=" " * 10, subsequent_indent=" " * 10)
    yield f"shards    {plan.shards.value:.0f}: {plan.shards.how}"
    yield f"\ndisk      {readable(plan.disk_bytes)}"
    yield from map(_bytes, plan.disk.items())
    yield f"\nwork      {readable(sum(figure.value for figure in plan.work.values()))} beside it while it is built"
    yield from map(_bytes, plan.work.items())
    yield "\nmemory of a shard's replica, and of a build"
    yield from map(_bytes, plan.memory.items())
    for machine, stages in plan.hours.items():
        yield f"\ntime      {_time(sum(figure.value for figure in stages.values()))} on {machine}"
        for stage, figure in stages.items():
            yield f"  {stage:18} {_time(figure.value):>12}  {figure.source:12} {figure.how}"
    rates = plan.rates
    yield (
        f"\nmeasured on {rates.machine}, load {rates.load:g}, {rates.date}, commit {rates.commit[:12]}: {rates.command}\n"
        "extrapolated: operations counted as in `openbook_database.plan`, at the rates measured there\n"
        "published: a bound from others' figures, nothing that was measured here"
    )


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def _bytes(item: tuple[str, Figure]) -> str:
    name, figure = item
    return f"  {name:18} {readable(figure.value):>12}  {figure.source:12} {figure.how}"
