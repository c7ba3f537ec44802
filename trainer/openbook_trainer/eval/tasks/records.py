"""A task's folder: settings that may not change, and JSON Lines that a killed run goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openbook_core.errors import ConflictError, CorruptError


def settle(folder: Path, settings: dict[str, Any]) -> None:
    """Write `settings` to a new folder; raises ConflictError, which lists the differences, where others are there."""
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{key}: {there.get(key)!r} there, {settings.get(key)!r} now"
            for key in sorted(there.keys() | settings.keys())
            if there.get(key) != settings.get(key)
        ]
        if changed:
            raise ConflictError(
                f"{folder} holds a run with other settings; {'; '.join(changed)}. Give the same ones, or another --out"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


class Records:
    """Rows with an `id`, each written once; a line that a kill cut off is dropped and its row made again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if not path.is_file():
            return
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self.rows[row["id"]] = row
            except (ValueError, KeyError, TypeError):
                raise CorruptError(f"{path}, line {number}: is no row of this run; delete the file") from None
        if len(whole) != len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rows are on the disk when this returns."""
        with self.path.open("ab") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {row["id"]: row for row in rows}
