"""What a run reports: JSON Lines on standard output and in `out/metrics.jsonl`, from process 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Metrics:
    """Appends records. On resume the lines of steps after the checkpoint are dropped: they will come again."""

    def __init__(self, path: Path, *, first: bool, resumed_at: int) -> None:
        self._path, self._first = path, first
        if not first:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if resumed_at and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= resumed_at:
                        kept.append(line + "\n")
                except ValueError:  # the line that a kill cut off
                    continue
        path.write_text("".join(kept), encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """One line, which has a `step`."""
        if self._first:
            line = json.dumps(record)
            print(line, flush=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
