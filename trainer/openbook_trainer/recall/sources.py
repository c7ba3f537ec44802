"""The sources by their settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from openbook_trainer.factbook.source import Factbook, FactbookSettings
from openbook_trainer.recall.source import RecallSource
from openbook_trainer.recall.worlds import Worlds, WorldsSettings

SourceSettings = Annotated[WorldsSettings | FactbookSettings, Field(discriminator="kind")]


def make_source(settings: WorldsSettings | FactbookSettings, seed: int) -> RecallSource:
    """The source that a configuration names, with its tokenizer. Raises OpenbookError for what it cannot read."""
    if isinstance(settings, FactbookSettings):
        return Factbook.make(settings, seed)
    return Worlds.make(settings, seed)
