"""What `openbook train` can be told to do, by the `task` of its configuration."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from openbook_core.config import FrozenConfig
from openbook_core.errors import ConfigError
from openbook_trainer.config import TrainConfig, task_of


def config_class(path: Path) -> type[FrozenConfig]:
    """The settings that the file at `path` holds; pretraining's where it names no task, or one that is not known."""
    task = task_of(path)
    if task == "sft":
        from openbook_trainer.sft.config import SftConfig

        return SftConfig
    if task == "recall":
        from openbook_trainer.recall.config import RecallConfig

        return RecallConfig
    return TrainConfig


def run_in_one_process(config: FrozenConfig, allow_changed: Collection[str]) -> None:
    """Run, or go on with, another task than pretraining.

    Raises ConfigError where torchrun started several processes, or where settings shall differ from the checkpoint's.
    """
    from openbook_trainer.recall.config import RecallConfig
    from openbook_trainer.recall.run import run_recall
    from openbook_trainer.sft.config import SftConfig
    from openbook_trainer.sft.run import run_sft

    assert isinstance(config, SftConfig | RecallConfig)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"task {config.task} runs in one process; leave out --processes", field="task")
    if allow_changed:
        raise ConfigError(
            f"--allow-changed: task {config.task} goes on with the same settings alone; give another `out`",
            field="allow-changed",
        )
    if isinstance(config, SftConfig):
        run_sft(config)
    else:
        run_recall(config)
