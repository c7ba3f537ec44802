"""Work that is done ahead of its use, by one thread, a bounded number of items ahead, in order."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Failure:
    error: Exception


class Prefetch(Generic[Item]):
    """Iterates over `items`, of which at most `depth` finished ones are kept; `waited_s` is the time spent waiting.

    An error of `items` is raised where its item would have come.
    """

    def __init__(self, items: Iterator[Item], depth: int, stop: Callable[[], bool] = lambda: False) -> None:
        """`stop` ends the iteration as if there were no more items, also while it waits."""
        self.waited_s = 0.0
        self._asked = stop
        self._items = items
        self._ready: queue.Queue[Item | _Failure | None] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            start = time.perf_counter()
            item = self._next()
            self.waited_s += time.perf_counter() - start
            if isinstance(item, _Failure):
                raise item.error
            if item is None:
                return
            yield item

    def _next(self) -> Item | _Failure | None:
        while not self._asked():
            try:
                return self._ready.get(timeout=0.2)
            except queue.Empty:
                continue
        return None

    def close(self) -> None:
        """Stop after the item that is in work; what is ready is dropped."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                self._thread.join(timeout=0.05)

    def _run(self) -> None:
        try:
            for item in self._items:
                if self._stop.is_set():
                    return
                self._ready.put(item)
            self._ready.put(None)
        except Exception as error:  # noqa: BLE001  handed to the reader, who raises it
            self._ready.put(_Failure(error))
