"""What the parts that may use Redis share: its URL, a client with bounded waits, its errors in words.

The password never shows in a message or a repr. The package redis is an extra of those parts, imported by `connect`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, unquote, urlsplit

from openbook_core.errors import ArgumentError, CorruptError, UnavailableError

if TYPE_CHECKING:
    import redis

PASSWORD_VARIABLE = "OPENBOOK_REDIS_PASSWORD"
DEFAULT_PREFIX = "openbook:"
_FORM = "redis://[[USER]:PASSWORD@]HOST[:PORT][/DB][?prefix=TEXT]"


@dataclass(frozen=True)
class RedisUrl:
    """The parts of a redis:// or rediss:// URL; `setting` is what holds it ("registry"), for errors."""

    host: str
    port: int
    db: int
    username: str | None
    password: str | None = field(repr=False)
    prefix: str
    tls: bool
    setting: str

    @classmethod
    def parse(cls, url: str, *, setting: str) -> Self:
        """Raises ArgumentError (field `setting`) saying what is wrong, without the URL itself."""

        def wrong(what: str) -> ArgumentError:
            return ArgumentError(f"the {setting}'s URL: {what}; give {_FORM}", field=setting)

        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise wrong("its port is no number from 0 to 65535, or a special character is not quoted") from error
        if parts.scheme not in ("redis", "rediss"):
            raise wrong("it begins with neither redis:// nor rediss://")
        if not host:
            raise wrong("it names no host")
        db = parts.path.strip("/")
        if db and not (db.isascii() and db.isdigit()):
            raise wrong(f"the database {db!r} is no number")
        options = parse_qs(parts.query, keep_blank_values=True)
        if set(options) - {"prefix"}:
            raise wrong(f"the only option is prefix, not {', '.join(sorted(set(options) - {'prefix'}))}")
        return cls(
            host=host,
            port=port or 6379,
            db=int(db or 0),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else os.environ.get(PASSWORD_VARIABLE) or None,
            prefix=options.get("prefix", [DEFAULT_PREFIX])[-1],
            tls=parts.scheme == "rediss",
            setting=setting,
        )

    @property
    def place(self) -> str:
        """For messages: "Redis at HOST:PORT"."""
        return f"Redis at {self.host}:{self.port}"


def connect(url: RedisUrl, *, timeout_s: float, extra: str, text: bool = True) -> redis.Redis:
    """A client that waits `timeout_s` for a connection and for each answer, and tries nothing twice.

    With `text` its answers are str, else bytes. Nothing is sent yet. Raises ArgumentError naming the `extra` to install
    ("openbook-database[redis]") where the package redis is missing.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ArgumentError(
            f"a {url.setting} in Redis needs an extra: pip install '{extra}'", field=url.setting
        ) from None
    return redis.Redis(
        host=url.host,
        port=url.port,
        db=url.db,
        username=url.username,
        password=url.password,
        ssl=url.tls,
        decode_responses=text,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )


@contextmanager
def clear_errors(url: RedisUrl) -> Iterator[None]:
    """Turns what the client raises into ArgumentError (field `url.setting`), CorruptError or UnavailableError."""
    import redis

    place = url.place
    try:
        yield
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise ArgumentError(
            f"{place} refuses the user or the password ({error}): give redis://:PASSWORD@HOST:PORT, or {PASSWORD_VARIABLE}",
            field=url.setting,
        ) from None
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise UnavailableError(
            f"{place} cannot be reached ({error}): start Redis or correct the {url.setting}'s URL"
        ) from None
    except redis.ResponseError as error:
        if "DB index" in str(error):
            raise ArgumentError(f"{place} has no database {url.db} ({error})", field=url.setting) from None
        if "WRONGTYPE" in str(error):
            raise CorruptError(
                f"{place}: keys with prefix {url.prefix!r} are used by something else ({error}): choose another with "
                "?prefix="
            ) from None
        raise UnavailableError(f"{place} refuses ({error})") from None
    except redis.RedisError as error:
        raise UnavailableError(f"{place} does not answer as Redis does ({error})") from None
