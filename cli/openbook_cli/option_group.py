"""Options that several verbs have in common, added to each by one line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

# Name of an option to its type and help; none has a default.
Options = dict[str, tuple[Any, str]]


def takes(options: Options, into: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds `options` to a verb, which gets those that were given as a dictionary in its argument `into`."""

    def add(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def run(**given: Any) -> None:
            taken = {name: given.pop(name) for name in options}
            verb(**given, **{into: {name: value for name, value in taken.items() if value is not None}})

        own = [each for each in inspect.signature(verb, eval_str=True).parameters.values() if each.name != into]
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
