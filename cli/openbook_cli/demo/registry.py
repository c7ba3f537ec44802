"""The demo's registry: new for each run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openbook_core.errors import ArgumentError
from openbook_database.registry import open_registry
from openbook_database.registry.local_redis import LocalRedis


def check_registry(kind: str) -> None:
    """ArgumentError where `new_registry` does not know `kind`, UnavailableError where a Redis given is not there."""
    if kind.startswith(("redis://", "rediss://")):
        open_registry(kind)
    elif kind not in ("directory", "redis"):
        raise ArgumentError("--registry: give directory, redis, or redis://HOST:PORT", field="registry")


@contextmanager
def new_registry(kind: str, workdir: Path, *, keep: bool) -> Iterator[str]:
    """What `--registry` of the services is to be.

    `kind`: "directory"; "redis" for a server that is started here and ends with the context; or the redis:// URL of a
    running one, in which the keys of this run have a prefix of their own and stay. Whatever was made here goes at the
    end, unless `keep` is set and nothing failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="registry-", dir=workdir))
    server = None
    kept = False
    try:
        if kind == "directory":
            yield str(folder)
        elif kind == "redis":
            server = LocalRedis(folder)
            yield server.url
        else:
            yield kind if "?" in kind else f"{kind}?prefix=openbook-demo-{folder.name}:"
        kept = keep
        if kept and server is not None:
            server.release()
            print(f"{'redis':<12} 127.0.0.1:{server.port}  (pid {server.pid})")
    finally:
        if not kept:
            if server is not None:
                server.stop()
            shutil.rmtree(folder, ignore_errors=True)
