"""Sizes for people."""

from __future__ import annotations


def readable(size: float) -> str:
    """Bytes in the unit of 1000 that gives one to three digits before the point."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} bytes" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
