"""`python -m openbook_retriever --role shard --registry DIR ...`: every setting of RetrieverConfig as an option."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from openbook_core.errors import ArgumentError, OpenbookError
from openbook_retriever.config import RetrieverConfig


def parse_args(arguments: Sequence[str]) -> RetrieverConfig:
    """The configuration; ConfigError names the option at fault."""
    parser = argparse.ArgumentParser(prog="openbook-retriever", description="Serves shards of snapshots, or routes.")
    for name, field in RetrieverConfig.model_fields.items():
        option = "--" + name.replace("_", "-")
        if name == "databases":
            parser.add_argument(option, nargs="*", default=argparse.SUPPRESS, help=field.description)
        elif name == "snapshot_guard":
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=field.description
            )
        else:
            parser.add_argument(option, required=field.is_required(), default=argparse.SUPPRESS, help=field.description)
    return RetrieverConfig.parse(vars(parser.parse_args(arguments)), source="command line")


def main() -> int:
    """Exit code 0 after a signal, 2 for options or input that are wrong, 1 for any other error."""
    try:
        config = parse_args(sys.argv[1:])
        from openbook_retriever.app import serve

        serve(config)
    except OpenbookError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
