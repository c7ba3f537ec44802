"""Which snapshot of a database is live, who serves it, and who asked for what."""

from __future__ import annotations

from pathlib import Path

from openbook_core.errors import ArgumentError
from openbook_database.registry.base import DEFAULT_TTL_S, Registry


def open_registry(url: str | Path, *, ttl_s: float = DEFAULT_TTL_S) -> Registry:
    """The registry at `url`: a folder, or file://FOLDER."""
    from openbook_database.registry.directory import DirectoryRegistry

    scheme, separator, rest = str(url).partition("://")
    if not separator:
        return DirectoryRegistry(url, ttl_s=ttl_s)
    if scheme == "file":
        return DirectoryRegistry(rest, ttl_s=ttl_s)
    raise ArgumentError(f"registry {str(url)!r}: {scheme}:// is not known; give a folder", field="registry")
