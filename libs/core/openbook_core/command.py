"""The command line of one service: every setting of its configuration as an option.

`python -m openbook_embedder`, `openbook_retriever` and `openbook_generator` are made of it, so that an image needs its
member only, not the `openbook` command and all that it can do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from openbook_core.config import FrozenConfig
from openbook_core.errors import ArgumentError, OpenbookError

Config = TypeVar("Config", bound=FrozenConfig)


def parse_options(config: type[Config], arguments: Sequence[str], *, prog: str) -> Config:
    """`--poll-interval-s 1` sets `poll_interval_s`; a setting that is a group of settings is no option.

    Raises ConfigError naming the setting at fault; argparse ends the process (exit code 2) for an unknown option.
    """
    parser = argparse.ArgumentParser(prog=prog, description=config.__doc__, allow_abbrev=False)
    for name, field in config.model_fields.items():
        option, kind = "--" + name.replace("_", "-"), field.annotation
        if isinstance(kind, type) and issubclass(kind, FrozenConfig):
            continue
        if kind == tuple[str, ...]:
            parser.add_argument(option, nargs="*", default=argparse.SUPPRESS, help=field.description)
        elif kind in (bool, bool | None):
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=field.description
            )
        else:
            parser.add_argument(option, required=field.is_required(), default=argparse.SUPPRESS, help=field.description)
    return config.parse(vars(parser.parse_args(arguments)), source="command line")


def run(read: Callable[[Sequence[str]], Config], serve: Callable[[Config], None]) -> int:
    """Exit code 0 after a signal, 2 for options or input that are wrong, 1 for any other error."""
    try:
        serve(read(sys.argv[1:]))
    except OpenbookError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    return 0
