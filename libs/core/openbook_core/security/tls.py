"""A server's certificate, for gRPC and for HTTP; it is read again when its files change."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from openbook_core.errors import ConfigError
from openbook_core.security.reread import Reread, read_setting


@dataclass(frozen=True)
class _Loaded:
    configuration: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext


class ServerTls:
    """Certificate chain and key as PEM files; `client_ca`: only clients with a certificate of it are served.

    Raises ConfigError naming the setting where a file cannot be used. New connections get what the files hold then; a
    client CA for HTTP stays as it was at the start.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._files = Reread(self._load, *(path for path in (certificate, key, client_ca) if path is not None))

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC."""
        served = self._files()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            before, served = served, self._files()
            return None if served is before else served.configuration

        return grpc.dynamic_ssl_server_credentials(
            served.configuration, fetch, require_client_authentication=self._client_ca is not None
        )

    def context(self) -> ssl.SSLContext:
        """For HTTP."""

        def newest(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            connection.context = self._files().context

        context = self._load().context
        context.sni_callback = newest
        return context

    def _load(self) -> _Loaded:
        certificate = read_setting(self._certificate, "tls_certificate")
        key = read_setting(self._key, "tls_key")
        ca = read_setting(self._client_ca, "tls_client_ca") if self._client_ca is not None else None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        load_pair(context, self._certificate, self._key)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            load_ca(context, self._client_ca, "tls_client_ca")
        pairs = [(key, certificate)]
        return _Loaded(grpc.ssl_server_certificate_configuration(pairs, root_certificates=ca), context)


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load PEM files that were read before; raises ConfigError naming tls_certificate or tls_key."""
    load_ca(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate, "tls_certificate")
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        why = (
            f"is not the key of {certificate}" if "MISMATCH" in str(error) else "holds no key in PEM without a password"
        )
        raise ConfigError(f"tls_key: {key} {why}", field="tls_key") from None


def load_ca(context: ssl.SSLContext, path: Path, field: str) -> None:
    """Trust the certificates of a PEM file; raises ConfigError naming `field` where it holds none."""
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError):
        raise ConfigError(f"{field}: {path} holds no certificate in PEM", field=field) from None
