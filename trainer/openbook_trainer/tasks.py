"""What `openbook train` can be told to do, by the `task` of its configuration."""

from __future__ import annotations

from pathlib import Path

from openbook_core.config import FrozenConfig
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
