"""JSON files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError


def read_json(path: Path) -> Any:
    """The value in a JSON file; None where there is no such file. Raises InputError for what is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}", field="model") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file. Raises InputError for another value."""
    data = read_json(path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold an object, not {type(data).__name__}", field="model")
    return data


def token_limit(settings: dict[str, Any], name: str, source: Path) -> int | None:
    """The number of tokens under `name`, None where there is none; InputError naming `source` for what is no number."""
    value = settings.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
        raise InputError(f"{source}: {name} is {value!r}; it must be a number of tokens, at least 1", field="model")
    return int(value)
