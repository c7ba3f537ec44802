"""What is to be cleaned. Nothing is, unless it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from openbook_core.config import FrozenConfig

GRAM = 13


class CleaningConfig(FrozenConfig):
    """A document that is left out is left out as a whole, so that continuations never jump over a gap."""

    dedup: Literal["none", "exact", "near"] = Field(
        default="none", description="exact: equal texts; near: equal and nearly equal ones. The first document stays"
    )
    near_threshold: float = Field(
        default=0.8,
        ge=0.3,
        le=1,
        description="Jaccard index of the token 5-grams from which documents are near-duplicates",
    )
    evaluation: tuple[Path, ...] = Field(
        default=(), description="evaluation files; documents that overlap with a text of theirs are left out"
    )
    overlap_threshold: float = Field(
        default=0.8, gt=0, le=1, description=f"Jaccard index of the token {GRAM}-grams from which two texts overlap"
    )
    longest_run: int | None = Field(
        default=50,
        ge=GRAM,
        description="shared run of tokens from which two texts overlap; null: only the Jaccard index",
    )

    @property
    def active(self) -> bool:
        return self.dedup != "none" or bool(self.evaluation)
