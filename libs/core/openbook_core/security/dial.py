"""How a client reaches services: whom it trusts, what it shows, and the token that it sends."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import grpc.aio

from openbook_core.errors import ConfigError
from openbook_core.security.reread import Reread, read_setting
from openbook_core.security.tls import load_ca, load_pair


class Dial:
    """Plain text and no token where nothing is given; `tls_ca` switches TLS on. See `options.DialOptions`.

    Raises ConfigError naming the setting at fault.
    """

    def __init__(
        self,
        *,
        tls_ca: Path | None = None,
        tls_certificate: Path | None = None,
        tls_key: Path | None = None,
        tls_server_name: str = "",
        token_file: Path | None = None,
        token: str = "",
        plaintext_token: bool = False,
    ) -> None:
        for field, given, other, missing in (
            ("tls_key", tls_certificate, "tls_certificate", tls_key),
            ("tls_certificate", tls_key, "tls_key", tls_certificate),
            ("tls_ca", tls_certificate, "tls_certificate", tls_ca),
            ("tls_ca", tls_server_name, "tls_server_name", tls_ca),
        ):
            if given and not missing:
                raise ConfigError(f"{field}: is needed with {other}", field=field)
        # For HTTP; None without TLS.
        self.context: ssl.SSLContext | None = None
        self._credentials: grpc.ChannelCredentials | None = None
        if tls_ca is not None:
            roots = read_setting(tls_ca, "tls_ca")
            key = read_setting(tls_key, "tls_key") if tls_key else None
            chain = read_setting(tls_certificate, "tls_certificate") if tls_certificate else None
            self.context = ssl.create_default_context()
            load_ca(self.context, tls_ca, "tls_ca")
            if tls_certificate and tls_key:
                load_pair(self.context, tls_certificate, tls_key)
            self._credentials = grpc.ssl_channel_credentials(roots, key, chain)
        self._server_name = tls_server_name
        self._token = Reread(lambda: _read_token(token_file), token_file) if token_file else lambda: token
        self._has_token, self._plaintext_token = bool(token_file or token), plaintext_token

    def token(self) -> str:
        """The token as its file holds it now; empty where there is none."""
        return self._token()

    def metadata(self) -> list[tuple[str, str]]:
        """What a call carries: the token, if there is one."""
        token = self.token()
        return [("authorization", f"Bearer {token}")] if token else []

    def channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """A channel to HOST:PORT. Raises ConfigError where the token would leave this host in plain text."""
        if self._credentials is None:
            self._require_private(address, _host(address))
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, self._credentials, options=[*options, *self._named()])

    def async_channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """As `channel`, for asyncio."""
        if self._credentials is None:
            self._require_private(address, _host(address))
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self._credentials, options=[*options, *self._named()])

    def http(self, url: str) -> dict[str, Any]:
        """What httpx needs for `url`: `verify` and `headers`. Raises ConfigError as `channel`."""
        parts = urlsplit(url)
        if parts.scheme != "https":
            self._require_private(url, parts.hostname or "")
        return {"verify": self.context or True, "headers": dict(self.metadata())}

    def _named(self) -> list[tuple[str, str]]:
        return [("grpc.ssl_target_name_override", self._server_name)] if self._server_name else []

    def _require_private(self, address: str, host: str) -> None:
        if self._has_token and not self._plaintext_token and not is_loopback(host):
            raise ConfigError(
                f"plaintext_token: {address} would get the token without TLS, for everybody on the way to read; give "
                "--tls-ca, or --plaintext-token where the network is trusted",
                field="plaintext_token",
            )


def _host(address: str) -> str:
    return address.rpartition(":")[0].rpartition("/")[2]


def is_loopback(host: str) -> bool:
    """Whether what is sent to `host` stays on this machine."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _read_token(path: Path) -> str:
    token = read_setting(path, "token_file").decode("ascii", errors="replace").strip()
    if not token or not token.isprintable() or not token.isascii() or " " in token:
        raise ConfigError(f"token_file: {path} must hold one token and nothing else", field="token_file")
    return token
