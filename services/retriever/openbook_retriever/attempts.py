"""What a watch asks of the registry by itself: what is refused is asked again, less and less often."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from openbook_core.errors import OpenbookError
from openbook_core.telemetry import get_logger
from openbook_database.registry.records import Control
from openbook_retriever.metrics import REGISTRY_ERRORS

_LONGEST_WAIT_S = 10.0
_log = get_logger("openbook_retriever.attempts")


@dataclass(frozen=True)
class _Refusal:
    fence: int
    wait_s: float
    until: float


class Attempts:
    """Owner of what was refused last; for one thread."""

    def __init__(self, first_wait_s: float) -> None:
        self._first_wait_s = first_wait_s
        self._refused: dict[tuple[str, str], _Refusal] = {}

    def make(self, what: str, control: Control, attempt: Callable[[], None]) -> None:
        """Call `attempt`; its error is logged and counted, not raised. Nothing is called for a while after one, twice as
        long each time, unless the record has changed."""
        key, now = (control.database, what), time.monotonic()
        last = self._refused.get(key)
        if last is not None and last.fence != control.fence:
            last = None
        if last is not None and now < last.until:
            return
        try:
            attempt()
        except (OpenbookError, OSError) as error:
            wait_s = min(2 * last.wait_s, _LONGEST_WAIT_S) if last else self._first_wait_s
            self._refused[key] = _Refusal(control.fence, wait_s, now + wait_s)
            REGISTRY_ERRORS.inc()
            _log.warning("database %s: %s was refused, again in %g s: %s", control.database, what, wait_s, error)
        else:
            self._refused.pop(key, None)
