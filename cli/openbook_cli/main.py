"""The `openbook` command: one file per group of verbs. Errors are one line for people, with an exit code."""

from __future__ import annotations

import sys

import typer

from openbook_cli import ask, database, demo_command, embedder, model, score, serve, token, train
from openbook_cli import eval as evaluation
from openbook_core.errors import ArgumentError, OpenbookError

# Plain help: rich's markup would cost half of the command's start.
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="RETRO with a book that can be swapped.",
)
app.add_typer(serve.app, name="serve", help="Start one service in the foreground.")
app.add_typer(database.app, name="db", help="Build, check and swap databases.")
app.add_typer(embedder.app, name="embedder", help="Export an encoder to another runtime, and compare.")
app.add_typer(model.app, name="model", help="Convert models, and say what one costs.")
app.add_typer(train.app, name="train")
app.add_typer(evaluation.app, name="eval", help="Measure a finished model.")
app.add_typer(token.app, name="token", help="Tokens that services ask for.")
app.command("ask")(ask.ask)
app.command("score")(score.score)
app.command("demo")(demo_command.demo)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 a wrong argument or input, 3 a gate not passed, 130 interrupted (Typer's)."""
    try:
        app()
    except OpenbookError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
