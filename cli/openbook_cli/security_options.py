"""Options of TLS, tokens and traces, for each verb that calls services or is one.

They are the settings of `openbook_core.security.options`, whose import would cost a third of the command's start.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from openbook_core.security.dial import Dial

Options = dict[str, tuple[Any, str]]
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


def takes(options: Options) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds `options` to a verb, which gets those that were given as its argument `security`."""

    def add(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def run(**given: Any) -> None:
            security = {name: given.pop(name) for name in options}
            verb(**given, security={name: value for name, value in security.items() if value is not None})

        own = [each for each in inspect.signature(verb, eval_str=True).parameters.values() if each.name != "security"]
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, typer.Option(help=text)],
            )
            for name, (kind, text) in options.items()
        ]
        run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in [*own, *added]}
        return run

    return add


def dial_of(security: dict[str, Any]) -> Dial:
    """What the options of DIALS, and for the others the environment, say. Raises ConfigError."""
    from openbook_core.security.options import DialOptions

    return DialOptions.parse(security, source="command line").dial()
