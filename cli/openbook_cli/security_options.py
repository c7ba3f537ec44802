"""Options of TLS, tokens and traces, for each verb that calls services or is one.

They are the settings of `openbook_core.security.options`, whose import would cost a third of the command's start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from openbook_cli.option_group import Options

if TYPE_CHECKING:
    from openbook_core.security.dial import Dial

_TRUST: Options = {
    "tls_ca": (Path, "Certificates of the CA to trust; switches TLS on for calls."),
    "tls_server_name": (str, "Name that certificates must have instead of the called address."),
    "token_file": (Path, "File of the token to send; else OPENBOOK_TOKEN."),
    "plaintext_token": (bool, "Send the token to other hosts without TLS as well."),
}
DIALS: Options = {
    **_TRUST,
    "tls_certificate": (Path, "Certificate to show, for mutual TLS."),
    "tls_key": (Path, "Its key."),
}
SERVES: Options = {
    "tls_certificate": (Path, "Certificate chain as PEM: serve TLS."),
    "tls_key": (Path, "Its key."),
    "tls_client_ca": (Path, "Serve only clients with a certificate of this CA."),
    "tokens": (Path, "File of the tokens that callers must have one of."),
    "traces_endpoint": (str, "Collector of traces over OTLP/HTTP; off by default."),
}
SERVES_AND_DIALS: Options = {**SERVES, **_TRUST}


def dial_of(security: dict[str, Any]) -> Dial:
    """What the options of DIALS, and for the others the environment, say. Raises ConfigError."""
    from openbook_core.security.options import DialOptions

    return DialOptions.parse(security, source="command line").dial()
