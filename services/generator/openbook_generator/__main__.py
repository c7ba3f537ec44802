"""`python -m openbook_generator`: every setting of GeneratorConfig as an option."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openbook_core.command import parse_options, run
from openbook_generator.config import GeneratorConfig


def parse_args(arguments: Sequence[str]) -> GeneratorConfig:
    """The configuration; ConfigError names the option at fault."""
    return parse_options(GeneratorConfig, arguments, prog="openbook-generator")


def _serve(config: GeneratorConfig) -> None:
    from openbook_generator.app import serve

    serve(config)


def main() -> int:
    """Exit codes as in `openbook_core.command.run`."""
    return run(parse_args, _serve)


if __name__ == "__main__":
    sys.exit(main())
