"""How far a build is, for people."""

from __future__ import annotations

import sys
from typing import Any


class ProgressLine:
    """Stage, share, rate and time left on one line of a terminal; one line for every tenth elsewhere."""

    def __init__(self, label: str = "") -> None:
        self._label, self._last = label, ("", -1)

    def __call__(self, update: Any) -> None:
        share = update.done / update.total if update.total else update.share or 0.0
        step = (update.stage, int(share * 10))
        terminal = sys.stderr.isatty()
        if not terminal and step == self._last:
            return
        self._last = step
        text = f"{self._label}{update.stage}: {update.done}"
        text += f" of {update.total}" if update.total else f" (about {share:.0%})" if share else ""
        if update.rate:
            text += f", {update.rate:,.{1 if update.rate < 100 else 0}f} {update.unit}/s"
        if update.seconds_left:
            text += f", {duration(update.seconds_left)} left"
        print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """In the two largest units: "45 s", "3 min 20 s", "5 h 7 min", "2 d 3 h"."""
    whole = round(seconds)
    for unit, name, smaller, lesser in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {lesser}"
    return f"{whole} s"
