"""Which snapshot of a database is live, who serves it, and who asked for what."""

from __future__ import annotations

from pathlib import Path

from openbook_core.errors import ArgumentError
from openbook_database.registry.base import DEFAULT_TTL_S, Registry


def open_registry(url: str | Path, *, ttl_s: float = DEFAULT_TTL_S) -> Registry:
    """The registry at `url`: a folder, file://FOLDER, or redis://HOST (`registry.redis` has the whole form)."""
    from openbook_database.registry.directory import DirectoryRegistry
    from openbook_database.registry.redis import RedisRegistry

    scheme, separator, rest = str(url).partition("://")
    if not separator:
        return DirectoryRegistry(url, ttl_s=ttl_s)
    if scheme == "file":
        return DirectoryRegistry(rest, ttl_s=ttl_s)
    if scheme in ("redis", "rediss"):
        return RedisRegistry(str(url), ttl_s=ttl_s)
    raise ArgumentError(f"registry: {scheme}:// is not known; give a folder or redis://HOST:PORT", field="registry")
