"""Typed, frozen configuration: YAML is data that loads into it.

An unknown key is an error that names the nearest right one; `load_config` merges defaults, a YAML file and
`a.b=c` overrides and remembers where each value came from, which `render_config` prints.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from openbook_core.errors import ConfigError


class FrozenConfig(BaseModel):
    """Base of all configuration classes: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    near = difflib.get_close_matches(str(key), known, n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
                    raise ValueError(f"unknown key {str(key)!r} in {cls.__name__}{hint}")
        return data

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, source: str = "configuration") -> Self:
        """Validate `data`; raises ConfigError naming the field and `source`."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            lines = []
            fields = []
            # A default that follows from a wrong setting is no error of its own.
            for item in [item for item in error.errors() if item["type"] != "default_factory_not_called"]:
                field = ".".join(str(part) for part in item["loc"])
                fields.append(field)
                message = item["msg"].removeprefix("Value error, ")
                given = "" if not field or isinstance(item["input"], Mapping) else f" (given {item['input']!r})"
                lines.append(f"{field + ': ' if field else ''}{message}{given}")
            raise ConfigError(f"{source}: " + "; ".join(lines), field=fields[0] or None) from None


Config = TypeVar("Config", bound=FrozenConfig)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises ConfigError for a file that cannot be read, bad YAML or another type."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such configuration file: {path}", field="config") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as a file: {error.strerror}", field="config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", field="config") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping at the top, not {type(data).__name__}", field="config")
    return data


def load_config(
    kind: type[Config], path: Path | None = None, overrides: Iterable[str] = ()
) -> tuple[Config, dict[str, str]]:
    """Defaults, then the YAML file, then overrides of the form `a.b=c` (values are YAML).

    Returns the configuration and, for each dotted key that was set, where its value came from.
    """
    data = read_yaml(path) if path else {}
    origin = {key: str(path) for key in _dotted(data)}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"an override reads a.b=value, given {override!r}", field="set")
        node = data
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {parent!r} is a value, not a group of settings", field=key)
        try:
            node[leaf] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{key}: {value!r} is not a YAML value: {error}", field=key) from None
        origin = {name: place for name, place in origin.items() if not name.startswith(f"{key}.")}
        origin |= dict.fromkeys(_dotted({key: node[leaf]}), "--set")
    return kind.parse(data, source=str(path) if path else "configuration"), origin


def render_config(config: FrozenConfig, origin: Mapping[str, str]) -> str:
    """The resolved tree as `key: value  # where it came from` lines; "derived" is what another setting brought."""
    values, told = (_dotted(config.model_dump(mode="json", exclude_unset=unset)) for unset in (False, True))

    def source(key: str) -> str:
        return origin.get(key, "derived" if key in told else "default")

    return "\n".join(f"{key}: {value!r}  # {source(key)}" for key, value in values.items())


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(_dotted(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
