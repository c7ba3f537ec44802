"""`python -m openbook_embedder`: every setting of EmbedderConfig as an option."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openbook_core.command import parse_options, run
from openbook_embedder.config import EmbedderConfig


def parse_args(arguments: Sequence[str]) -> EmbedderConfig:
    """The configuration; ConfigError names the option at fault."""
    return parse_options(EmbedderConfig, arguments, prog="openbook-embedder")


def _serve(config: EmbedderConfig) -> None:
    from openbook_embedder.app import serve

    serve(config)


def main() -> int:
    """Exit codes as in `openbook_core.command.run`."""
    return run(parse_args, _serve)


if __name__ == "__main__":
    sys.exit(main())
