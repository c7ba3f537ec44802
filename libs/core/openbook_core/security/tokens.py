"""Bearer tokens: a file of names, digests and scopes.

One JSON object a line: {"name": "ci", "sha256": "64 hexadecimal digits", "scopes": ["read", "admin"]}, and if wanted
"expires": "2027-01-31T00:00:00Z". A token is made here of 256 random bits, so its plain SHA-256 gives nothing away and
needs no salt. No scope holds another: a token for both has both.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

from pydantic import AwareDatetime, Field

from openbook_core.config import FrozenConfig
from openbook_core.errors import ArgumentError, AuthenticationError, ConfigError, ForbiddenError
from openbook_core.security.reread import Reread, read_setting

Scope = Literal["read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_FORM = '{"name": "ci", "sha256": "64 hexadecimal digits", "scopes": ["read", "admin"]}'
_ADMIN_SERVICE, _ADMIN_READS = "openbook_proto.v1.DatabaseAdmin", ("List", "Plan", "Watch")
_caller: ContextVar[str] = ContextVar("caller", default="")


class Entry(FrozenConfig):
    """One line of the file."""

    name: str = Field(pattern=r"^[\w.@-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[Scope] = Field(min_length=1)
    expires: AwareDatetime | None = None


class TokenFile:
    """The tokens of `path`, as it is now. Raises ConfigError where it cannot be read at the start."""

    def __init__(self, path: Path) -> None:
        self._entries = Reread(lambda: read_entries(path), path)

    def admit(self, authorization: str | None, scope: Scope, what: str) -> str:
        """The name of the token in the header `authorization`; `what` is asked for.

        Raises AuthenticationError without a token that counts, ForbiddenError for one without the scope.
        """
        kind, _, token = (authorization or "").strip().partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise AuthenticationError(f"{what} needs a token: send the header 'authorization: Bearer TOKEN'")
        digest = _digest(token.strip())
        found = None
        for entry in self._entries():  # all of them, whichever fits: the time tells nothing
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        if found is None:
            raise AuthenticationError("the token is not known here: it was taken back, or is another service's")
        if found.expires is not None and found.expires <= datetime.now(UTC):
            raise AuthenticationError(f"token {found.name!r} ended at {found.expires.isoformat()}; get a new one")
        if scope not in found.scopes:
            raise ForbiddenError(
                f"token {found.name!r} has the scope {', '.join(sorted(found.scopes))}; {what} needs {scope}"
            )
        return found.name


def scope_of(method: str) -> Scope | None:
    """What a token must hold for a gRPC method such as "/openbook_proto.v1.Retriever/Search"; None: no token is needed.

    Health checks need none, reflection needs "read". What DatabaseAdmin will learn needs "admin" unless it is named here.
    """
    service, _, name = method.lstrip("/").partition("/")
    if service == "grpc.health.v1.Health":
        return None
    return "admin" if service == _ADMIN_SERVICE and name not in _ADMIN_READS else "read"


def caller() -> str:
    """Name of the token that this thread or task works for; empty where none was asked for."""
    return _caller.get()


def bind_caller(name: str) -> None:
    _caller.set(name)


def read_entries(path: Path) -> list[Entry]:
    """Raises ConfigError naming the line, and never what stands in it: it may be a token by mistake."""
    entries: dict[str, Entry] = {}
    lines = read_setting(path, "tokens").decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"tokens: {path}, line {number}"
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise ValueError
            entry = Entry.parse(data)
        except ConfigError as error:
            raise ConfigError(
                f"{where}: {error.field or 'a key'} is wrong; a line is {_FORM}", field="tokens"
            ) from None
        except ValueError:
            raise ConfigError(f"{where}: is no JSON object; a line is {_FORM}", field="tokens") from None
        if entry.name in entries:
            raise ConfigError(f"{where}: the name {entry.name!r} is there twice", field="tokens")
        entries[entry.name] = entry
    if not entries:
        raise ConfigError(
            f"tokens: {path} holds none, so nobody could call; make one with 'openbook token new'", field="tokens"
        )
    return list(entries.values())


def add_token(path: Path, name: str, scopes: Iterable[str], days: float | None = None) -> str:
    """Append a new token's line to `path`, made if it is not there; returns the token, which is kept nowhere.

    Raises ArgumentError for a name that is taken or a scope that there is not, ConfigError for a file that is broken.
    """
    token = f"openbook_{secrets.token_urlsafe(32)}"
    expires = None if days is None else datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    data = {"name": name, "sha256": _digest(token), "scopes": sorted(scopes), "expires": expires}
    entry = Entry.parse(data, source="openbook token new")
    there = path.read_bytes() if path.exists() else b""
    if there.strip() and any(each.name == name for each in read_entries(path)):
        raise ArgumentError(f"name: {path} has a token {name!r}; choose another name, or delete its line", field="name")
    line = json.dumps(entry.model_dump(mode="json", exclude_none=True)) + "\n"
    try:
        with path.open("ab") as file:
            file.write((b"\n" if there and not there.endswith(b"\n") else b"") + line.encode())
    except OSError as error:
        raise ArgumentError(f"file: {path} cannot be written: {error.strerror}", field="file") from None
    return token


def _digest(token: str) -> str:
    return sha256(token.encode("utf-8", errors="surrogateescape")).hexdigest()
