"""`python -m openbook_retriever`: every setting of RetrieverConfig as an option."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openbook_core.command import parse_options, run
from openbook_retriever.config import RetrieverConfig


def parse_args(arguments: Sequence[str]) -> RetrieverConfig:
    """The configuration; ConfigError names the option at fault."""
    return parse_options(RetrieverConfig, arguments, prog="openbook-retriever")


def _serve(config: RetrieverConfig) -> None:
    from openbook_retriever.app import serve

    serve(config)


def main() -> int:
    """Exit codes as in `openbook_core.command.run`."""
    return run(parse_args, _serve)


if __name__ == "__main__":
    sys.exit(main())
