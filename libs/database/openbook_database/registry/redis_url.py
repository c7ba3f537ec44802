"""Where a Redis is, taken from a URL; the password never shows in a message or a repr."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from openbook_core.errors import ArgumentError

PASSWORD_VARIABLE = "OPENBOOK_REDIS_PASSWORD"
DEFAULT_PREFIX = "openbook:"
_FORM = "redis://[[USER]:PASSWORD@]HOST[:PORT][/DB][?prefix=TEXT]"


@dataclass(frozen=True)
class RedisUrl:
    """The parts of a redis:// or rediss:// URL."""

    host: str
    port: int
    db: int
    username: str | None
    password: str | None = field(repr=False)
    prefix: str
    tls: bool

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ArgumentError (field "registry") saying what is wrong, without the URL itself."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _wrong("its port is no number from 0 to 65535, or a special character is not quoted") from error
        if parts.scheme not in ("redis", "rediss"):
            raise _wrong("it begins with neither redis:// nor rediss://")
        if not host:
            raise _wrong("it names no host")
        db = parts.path.strip("/")
        if db and not (db.isascii() and db.isdigit()):
            raise _wrong(f"the database {db!r} is no number")
        options = parse_qs(parts.query, keep_blank_values=True)
        if set(options) - {"prefix"}:
            raise _wrong(f"the only option is prefix, not {', '.join(sorted(set(options) - {'prefix'}))}")
        return cls(
            host=host,
            port=port or 6379,
            db=int(db or 0),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else os.environ.get(PASSWORD_VARIABLE) or None,
            prefix=options.get("prefix", [DEFAULT_PREFIX])[-1],
            tls=parts.scheme == "rediss",
        )

    @property
    def place(self) -> str:
        """For messages: "Redis at HOST:PORT"."""
        return f"Redis at {self.host}:{self.port}"


def _wrong(what: str) -> ArgumentError:
    return ArgumentError(f"the registry's URL: {what}; give {_FORM}", field="registry")
