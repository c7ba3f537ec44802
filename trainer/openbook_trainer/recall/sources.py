"""The sources by their settings."""

from __future__ import annotations

from openbook_trainer.recall.source import RecallSource
from openbook_trainer.recall.worlds import Worlds, WorldsSettings


def make_source(settings: WorldsSettings, seed: int) -> RecallSource:
    """The source that a configuration names, with its tokenizer. Raises OpenbookError for what it cannot read."""
    return Worlds.make(settings, seed)
