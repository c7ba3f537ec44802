"""How far a build is, for people."""

from __future__ import annotations

import sys
from typing import Any


class ProgressLine:
    """Stage, share and rate on one line of a terminal; one line for every tenth elsewhere."""

    def __init__(self, label: str = "") -> None:
        self._label, self._last = label, ("", -1)

    def __call__(self, update: Any) -> None:
        share = update.done / update.total if update.total else 0.0
        step = (update.stage, int(share * 10))
        terminal = sys.stderr.isatty()
        if not terminal and step == self._last:
            return
        self._last = step
        text = f"{self._label}{update.stage}: {update.done}{f' of {update.total}' if update.total else ''}"
        print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)
