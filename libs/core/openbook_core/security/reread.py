"""Files that are read again when they change, so that certificates and tokens are replaced without a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from openbook_core.errors import ConfigError
from openbook_core.telemetry import get_logger

Content = TypeVar("Content")

_log = get_logger(__name__)


class Reread(Generic[Content]):
    """What `read` makes of files, made again when one of them changes. Safe to call from several threads.

    `read` raises ConfigError: the first time to the caller, later into the log, and what was read before stays.
    """

    def __init__(self, read: Callable[[], Content], *paths: Path) -> None:
        self._read, self._paths, self._lock = read, paths, Lock()
        self._stamps = self._look()
        self._content = read()

    def __call__(self) -> Content:
        if self._look() != self._stamps:
            with self._lock:
                stamps = self._look()
                if stamps != self._stamps:
                    self._stamps = stamps
                    self._read_again()
        return self._content

    def _read_again(self) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            self._content = self._read()
        except ConfigError as error:
            _log.error("%s changed and is not used, what was read before stays in force: %s", names, error.message)
        else:
            _log.info("%s changed and was read again", names)

    def _look(self) -> list[tuple[int, int, int] | None]:
        stamps: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                found = path.stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        return stamps


def read_setting(path: Path, field: str) -> bytes:
    """The content of the file that the setting `field` names; raises ConfigError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{field}: {path} cannot be read: {error.strerror}", field=field) from None
