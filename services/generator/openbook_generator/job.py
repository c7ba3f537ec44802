"""One request inside the engine: its tokens, its chunk grid, and what it waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Literal

from openbook_generator.sampling import Sampler, TextStream
from openbook_model import Neighbors
from openbook_model.chunks import chunks_due, complete_chunks, default_first_chunk
from openbook_prompt.passage import Pin

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """New text of a request (perhaps empty) and tokens so far; the last one has a finish reason."""

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


Event = Piece | Exception


@dataclass(frozen=True)
class Attended:
    """Chunk ids that the cross attention read at the token positions [first, last) of prompt and reply."""

    positions: tuple[int, int]
    chunk_ids: tuple[int, ...]


@dataclass
class Job:
    """Made by the service, then owned by the engine's thread; only `cancel` may be called from elsewhere.

    `emit` gets each Piece, or one exception as the last event, on the engine's thread. `pin` is None where the
    request's chunks get no neighbours. `context` is that of the request: its id and trace.
    """

    prompt: list[int]
    max_tokens: int
    sampler: Sampler
    stop: tuple[str, ...]
    emit: Callable[[Event], None]
    pin: Pin | None = None
    neighbors: int = 2
    slot: int = -1
    fed: int = 0
    phase: int = 0
    generated: list[int] = field(default_factory=list)
    found: Neighbors | None = None
    attended: list[Attended] = field(default_factory=list)
    asking: bool = False
    context: Context = field(default_factory=copy_context)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.stream = TextStream(self.stop)

    def cancel(self) -> None:
        """Give up: the engine frees the slot before its next pass."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def start(self, slot: int, chunk_length: int) -> None:
        self.slot = slot
        self.phase = default_first_chunk(len(self.prompt), chunk_length)

    @property
    def next_tokens(self) -> list[int]:
        """What the next pass reads: the prompt, then the newest token."""
        return self.prompt if self.fed == 0 else self.generated[-1:]

    def answer(self, found: Neighbors, chunk_ids: Sequence[tuple[int, ...]], chunk_length: int) -> None:
        """Take the neighbours of the chunks that are due; they serve from each chunk's last token on."""
        first = complete_chunks(self.fed, self.phase, chunk_length)
        for chunk, ids in enumerate(chunk_ids, first):
            start = self.phase - 1 + chunk * chunk_length
            self.attended.append(Attended((start, start + chunk_length), ids))
        self.found, self.asking = found, False

    def due_chunks(self, chunk_length: int) -> list[list[int]]:
        """The token ids of each chunk that the next pass completes, in order."""
        tokens = (self.prompt + self.generated)[: self.fed + len(self.next_tokens)]
        return chunks_due(tokens, self.fed, self.phase, chunk_length)
