"""`openbook train`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Option(help="YAML file with the run's settings.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="a.b=value, over the file; repeatable.")] = None,
    processes: Annotated[int, typer.Option(help="Processes to start on this machine through torchrun.")] = 1,
    print_config: Annotated[bool, typer.Option(help="Show the resolved settings and where each came from.")] = False,
) -> None:
    """Train a RETRO model with neighbours from a running retriever."""
    if print_config:
        from openbook_core.config import render_config
        from openbook_trainer.config import load_train_config

        print(render_config(*load_train_config(config, set_ or ())))
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "openbook_trainer", "--config", str(config)]
    for override in set_ or ():
        command += ["--set", override]
    os.execv(sys.executable, command)
