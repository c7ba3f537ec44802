"""Sliding windows over a document that predict each token but the first exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ConfigError
from openbook_model.config import RetroConfig

LONGEST = 1024


@dataclass(frozen=True)
class Window:
    """The model reads tokens [first, first + inputs); position p of it predicts token first + p + 1.

    Positions below `unscored` are context: their tokens were predicted in the window before.
    """

    first: int
    inputs: int
    unscored: int


@dataclass(frozen=True)
class Sliding:
    """Windows of `block` tokens that begin every `stride` tokens; a token is predicted from the first that can.

    So a token, but for those of a document's beginning, has block - stride or more tokens of context.
    """

    block: int
    stride: int

    def windows(self, tokens: int) -> Iterator[Window]:
        """The windows of a document of so many tokens; none for one token."""
        inputs_end = tokens - 1
        first = scored = 0
        while scored < inputs_end:
            end = min(first + self.block, inputs_end)
            yield Window(first, end - first, scored - first)
            scored, first = end, first + self.stride

    def chunks_read(self, tokens: int, chunk_length: int) -> NDArray[np.int64]:
        """For each predicted token [N - 1] of a document the chunk whose neighbours the model reads; -1: it reads none.

        For windows on chunk borders: a window's tokens before the end of its first chunk read none.
        """
        found = []
        for window in self.windows(tokens):
            chunks = (np.arange(window.unscored, window.inputs) - (chunk_length - 1)) // chunk_length
            found.append(np.where(chunks >= 0, chunks + window.first // chunk_length, -1))
        return np.concatenate(found)


def resolve_sliding(config: RetroConfig, block: int | None, stride: int | None, *, grid: bool) -> Sliding:
    """The windows asked for, by default of the model's positions or 1,024, half of it further each time.

    With `grid` windows begin and end on chunk borders, where retrieved neighbours belong. Raises ConfigError for a
    block beyond the model's positions, a stride beyond the block, or, with `grid`, one that is off the borders.
    """
    unit = config.chunk_length if grid else 1
    block = block or min(LONGEST, config.max_positions) // unit * unit
    stride = stride or max(1, block // 2 // unit) * unit
    if block > config.max_positions:
        raise ConfigError(f"block: {block} tokens; the model has {config.max_positions} positions", field="block")
    if stride > block:
        raise ConfigError(
            f"stride: {stride} leaves tokens out between blocks of {block}; at most {block}", field="stride"
        )
    for name, value in (("block", block), ("stride", stride)):
        if value % unit:
            raise ConfigError(
                f"{name}: {value} is not a multiple of the model's chunk length {unit}, on whose borders neighbours "
                f"belong; take {max(1, value // unit) * unit}",
                field=name,
            )
    return Sliding(block, stride)
