"""What a reader gives, its options, and the files that it is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from openbook_core.errors import ConfigError, InputError, NotFoundError


@dataclass(frozen=True)
class Example:
    """A question, its answer and further spellings of it; what was said before; the question's own passages.

    `turns`: (role, text) each, with the roles of chat templates. `passages` None: they are to be retrieved.
    """

    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    passages: tuple[str, ...] | None = None
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Reader:
    """A format. `options`: the allowed values of each, the first as default; or the default of one that may be any text."""

    read: Callable[[Path, Mapping[str, str]], Iterator[Example]]
    options: Mapping[str, tuple[str, ...] | str]

    def __call__(self, path: str, options: Mapping[str, str]) -> list[Example]:
        """The examples of a file, whose `path` may name environment variables.

        Raises ConfigError for an option, NotFoundError for a missing file, InputError for a bad row or no example.
        """
        found = list(self.read(existing(path), self.resolve(options)))
        if not found:
            raise InputError(f"{path} has no example that its options let through", field="blend")
        return found

    def resolve(self, options: Mapping[str, str]) -> dict[str, str]:
        """All options, given or by default. Raises ConfigError for one that is unknown or has a value that is not."""
        for name, value in options.items():
            allowed = self.options.get(name)
            if allowed is None:
                known = ", ".join(self.options) or "none"
                raise ConfigError(f"unknown option {name!r}; this format has {known}", field=f"options.{name}")
            if isinstance(allowed, tuple) and value not in allowed:
                raise ConfigError(
                    f"option {name} is {value!r}; it may be {', '.join(allowed)}", field=f"options.{name}"
                )
        return {name: each if isinstance(each, str) else each[0] for name, each in self.options.items()} | dict(options)


def existing(path: str) -> Path:
    """The file of a blend's `path`. Raises NotFoundError."""
    file = Path(os.path.expandvars(path)).expanduser()
    if not file.is_file():
        raise NotFoundError(f"{path} of the blend is missing (looked for {file})", field="blend")
    return file


def join(*parts: str) -> str:
    """Those that are not empty, as paragraphs."""
    return "\n\n".join(part for part in parts if part)
