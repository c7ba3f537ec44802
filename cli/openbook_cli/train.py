"""`openbook train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Option(help="YAML file with the run's settings.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="a.b=value, over the file; repeatable.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine, started as torchrun does.")] = 1,
    print_config: Annotated[bool, typer.Option(help="Show the resolved settings and where each came from.")] = False,
) -> None:
    """Train a RETRO model with neighbours from a running retriever, tune one on instructions (`task: sft`), or teach
    one to answer from its neighbours alone (`task: recall`)."""
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
    raise typer.Exit(launch(processes, arguments))
