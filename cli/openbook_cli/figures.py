"""Figures of an evaluation to a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openbook_core.errors import ArgumentError


def write_figures(figures: dict[str, Any], path: Path | None) -> None:
    """`figures` as JSON (finite numbers only) to `path`, if one is given. Raises ArgumentError where it can't be written."""
    if path is None:
        return
    text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"--json {path} cannot be written: {error.strerror}", field="json") from error
