"""Choosing the next token: greedy, or temperature and nucleus sampling with the request's own random numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Sampler:
    """Temperature 0 is greedy. A seed makes the choice depend on the logits alone."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator()
        if self.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self.seed)

    def choose(self, logits_V: Tensor) -> int:
        """The id of the next token."""
        if self.temperature == 0.0:
            return int(logits_V.argmax())
        probability_V, order_V = torch.softmax(logits_V.float().cpu() / self.temperature, dim=-1).sort(descending=True)
        if self.top_p < 1.0:
            before_V = probability_V.cumsum(dim=-1) - probability_V
            probability_V = probability_V.masked_fill(before_V >= self.top_p, 0.0)
            probability_V[0] = max(float(probability_V[0]), 1e-9)
        return int(order_V[torch.multinomial(probability_V, 1, generator=self._generator)])


class TextStream:
    """Turns tokens into text pieces, and ends at a stop string, which is not part of the text.

    Held back: bytes that are no whole character yet, and what may be the beginning of a stop string.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._sent = 0
        self.stopped = False

    def push(self, text: str, *, last: bool) -> str:
        """The new piece of the whole `text` so far; with `last` all that was held back."""
        places = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        end = len(text)
        if places:
            self.stopped, end = True, min(places)
        elif not last:
            end = min(len(text.rstrip("\ufffd")), len(text) - self._possible_stop(text))
        piece = text[self._sent : max(self._sent, end)]
        self._sent += len(piece)
        return piece

    def _possible_stop(self, text: str) -> int:
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
