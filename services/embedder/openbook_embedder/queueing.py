"""What waits for the encoder, and which of it makes the next batch."""

from __future__ import annotations

import time
from collections.abc import Sequence

from openbook_embedder.ticket import Ticket

# As much padding, in tokens, may be in a batch as one more batch would cost: that is what starting the network and
# streaming its weights takes, about 60 tokens of MiniLM on a processor.
BATCH_COST_TOKENS = 64
_WINDOW = 1024


class Item:
    """Texts at `places` of a ticket that go into one batch: one text, or `alone` a batch that nothing else may join."""

    __slots__ = ("alone", "ids", "places", "ticket", "tokens", "width")

    def __init__(self, ticket: Ticket, places: Sequence[int], *, alone: bool = False) -> None:
        self.ticket, self.places, self.alone = ticket, places, alone
        self.ids = [ticket.ids[place] for place in places]
        self.width = max(map(len, self.ids))
        self.tokens = sum(map(len, self.ids))


class Lane:
    """One queue, first come first served. It has no lock: the Batcher's owns it."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.texts = self.tokens = 0

    def add(self, items: Sequence[Item]) -> None:
        self.items += items
        self._count(items, 1)

    def take(self, batch_tokens: int, enough_tokens: int, cores: int = 1) -> list[Item]:
        """Remove and return the next batch of a lane that is not empty: of at most `batch_tokens`, padded.

        What would leave one of the `cores` that divide the batch idle stays for the next one, if there is one.

        Where several calls wait, it takes at most half, or `enough_tokens` if that is more: while one half is encoded, the
        callers of the other get their answers and come again. Else the first to be back goes alone, the others after it.
        """
        if any(item.ticket is not self.items[0].ticket for item in self.items):
            batch_tokens = min(batch_tokens, max(enough_tokens, self.tokens // 2))
        batch = choose_batch(self.items, batch_tokens)
        if cores < len(batch) < len(self.items):
            batch = batch[: len(batch) - len(batch) % cores]
        taken = set(map(id, batch))
        self.items = [item for item in self.items if id(item) not in taken]
        self._count(batch, -1)
        return batch

    def drop_closed(self) -> None:
        """Fail what is too late; forget what nobody waits for."""
        now = time.monotonic()
        for item in self.items:
            ticket = item.ticket
            if ticket.deadline is not None and ticket.deadline <= now:
                ticket.fail(ticket.late())
        closed = [item for item in self.items if item.ticket.closed]
        if closed:
            self.items = [item for item in self.items if not item.ticket.closed]
            self._count(closed, -1)

    def _count(self, items: Sequence[Item], sign: int) -> None:
        self.texts += sign * sum(len(item.places) for item in items)
        self.tokens += sign * sum(item.tokens for item in items)


def choose_batch(queue: Sequence[Item], batch_tokens: int) -> list[Item]:
    """The oldest item of a queue that is not empty, and those nearest in length that fit the padded budget.

    Of the budget at most BATCH_COST_TOKENS are padding. Mates are looked for among the next _WINDOW items, so that a long
    queue costs no more than its batches.
    """
    oldest = queue[0]
    if oldest.alone:
        return [oldest]
    batch, width, read = [oldest], oldest.width, oldest.tokens
    mates = [item for item in queue[1:_WINDOW] if not item.alone]
    for item in sorted(mates, key=lambda item: abs(item.width - oldest.width)):
        wider = max(width, item.width)
        padded = wider * (len(batch) + 1)
        if padded > batch_tokens or padded - read - item.tokens > BATCH_COST_TOKENS:
            break
        batch.append(item)
        width, read = wider, read + item.tokens
    return batch
