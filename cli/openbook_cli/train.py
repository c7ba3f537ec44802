"""`openbook train`, and `openbook train plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file with the run's settings.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="a.b=value, over the file; repeatable.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine, started as torchrun does.")] = 1,
    allow_changed: Annotated[
        list[str] | None, typer.Option(help="Resume although this setting differs from the checkpoint's; repeatable.")
    ] = None,
    print_config: Annotated[bool, typer.Option(help="Show the resolved settings and where each came from.")] = False,
) -> None:
    """Train a RETRO model with neighbours from a running retriever, tune one on instructions (`task: sft`), or teach
    one to answer from its neighbours alone (`task: recall`)."""
    if context.invoked_subcommand is not None:
        return
    if config is None:
        raise typer.BadParameter("name the YAML file with the run's settings", param_hint="--config")
    from openbook_core.config import load_config, render_config
    from openbook_trainer.tasks import config_class

    resolved, origin = load_config(config_class(config), config, set_ or ())
    if print_config:
        print(render_config(resolved, origin))
        return
    from openbook_trainer.launch import launch

    arguments = ["--config", str(config)]
    for override in set_ or ():
        arguments += ["--set", override]
    for field in allow_changed or ():
        arguments += ["--allow-changed", field]
    raise typer.Exit(launch(processes, arguments))


@app.command()
def plot(
    run: Annotated[Path, typer.Argument(help="Folder of a run: its `out`, with metrics.jsonl.")],
    out: Annotated[Path | None, typer.Option(help="The PNG; curves.png in the run's folder.")] = None,
) -> None:
    """Draw a run's curves: loss, gradient norm, rate, speed, MFU, waiting, memory, gates."""
    from openbook_trainer.curves import draw_curves

    path = out or run / "curves.png"
    draw_curves(run, path)
    print(path)
