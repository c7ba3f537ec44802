"""The settings of TLS, tokens and traces: what each service takes, and what each client takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from openbook_core.config import FrozenConfig
from openbook_core.errors import ConfigError
from openbook_core.security.dial import Dial, is_loopback
from openbook_core.security.tls import ServerTls
from openbook_core.security.tokens import TokenFile
from openbook_core.telemetry import get_logger

_log = get_logger(__name__)


def _setting(variable: str, description: str, default: Any = None) -> Any:
    """A setting that the environment gives where nothing else does."""
    return Field(
        default_factory=lambda: os.environ.get(variable) or default, description=f"{description} (or {variable})"
    )


class _Trust(FrozenConfig):
    tls_ca: Path | None = _setting("OPENBOOK_TLS_CA", "certificates of the CA to trust; switches TLS on for calls")
    tls_server_name: str = _setting(
        "OPENBOOK_TLS_SERVER_NAME", "name that certificates must have instead of the address that is called", ""
    )
    token_file: Path | None = _setting("OPENBOOK_TOKEN_FILE", "file of the token to send; else OPENBOOK_TOKEN")
    plaintext_token: bool = _setting(
        "OPENBOOK_PLAINTEXT_TOKEN", "send the token to other hosts without TLS as well", False
    )


class DialOptions(_Trust):
    """What a client takes."""

    tls_certificate: Path | None = _setting("OPENBOOK_TLS_CERTIFICATE", "certificate to show, for mutual TLS")
    tls_key: Path | None = _setting("OPENBOOK_TLS_KEY", "its key")

    def dial(self) -> Dial:
        """Raises ConfigError naming the setting at fault."""
        return Dial(token=os.environ.get("OPENBOOK_TOKEN", ""), **dict(self))


@dataclass(frozen=True)
class Protection:
    """What a server does for its own: None where it takes everybody, in plain text."""

    tls: ServerTls | None = None
    tokens: TokenFile | None = None

    @property
    def scheme(self) -> str:
        return "http" if self.tls is None else "https"


class ServerOptions(FrozenConfig):
    """What each service takes."""

    tls_certificate: Path | None = _setting("OPENBOOK_SERVER_TLS_CERTIFICATE", "certificate chain as PEM: serve TLS")
    tls_key: Path | None = _setting("OPENBOOK_SERVER_TLS_KEY", "its key")
    tls_client_ca: Path | None = _setting(
        "OPENBOOK_SERVER_TLS_CLIENT_CA", "serve only clients with a certificate of this CA"
    )
    tokens: Path | None = _setting("OPENBOOK_SERVER_TOKENS", "file of the tokens that callers must have one of")
    traces_endpoint: str | None = Field(
        default=None, description="collector of traces over OTLP/HTTP (or OTEL_EXPORTER_OTLP_ENDPOINT); off by default"
    )

    def protection(self, host: str) -> Protection:
        """Read the files; warns where tokens would come in plain text over a network.

        Raises ConfigError naming the setting at fault.
        """
        certificate, key = self.tls_certificate, self.tls_key
        for field, given, other in (
            ("tls_key", key, certificate),
            ("tls_certificate", certificate, key or self.tls_client_ca),
        ):
            if other is not None and given is None:
                raise ConfigError(f"{field}: certificate and key are needed, both; {field} is missing", field=field)
        tls = ServerTls(certificate, key, self.tls_client_ca) if certificate and key else None
        if self.tokens is not None and tls is None and not is_loopback(host):
            _log.warning(
                "tokens are asked for on %s without TLS: everybody on the way can read them; give --tls-certificate and "
                "--tls-key, or encrypt in front of this service",
                host,
            )
        return Protection(tls, TokenFile(self.tokens) if self.tokens is not None else None)


class DialingServerOptions(ServerOptions, _Trust):
    """What a service takes that calls others."""

    def dial(self) -> Dial:
        """To those it shows its own certificate, unless OPENBOOK_TLS_CERTIFICATE names another one."""
        given = {name: getattr(self, name) for name in _Trust.model_fields}
        if self.tls_ca is not None and "OPENBOOK_TLS_CERTIFICATE" not in os.environ:
            given |= {"tls_certificate": self.tls_certificate, "tls_key": self.tls_key}
        return DialOptions.parse(given).dial()
