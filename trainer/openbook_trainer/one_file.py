"""A run's state as one file: written beside its place and renamed, read back only under the same settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from openbook_core.errors import ConfigError, CorruptError
from openbook_core.files import sync
from openbook_core.fingerprint import differences


def save_state(path: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Tensors and plain values, with the settings that decide what the run computes."""
    draft = path.with_suffix(".draft")
    torch.save({**state, "settings": json.dumps(settings)}, draft)
    sync(draft)
    os.replace(draft, path)


def load_state(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was saved, None where there is nothing.

    Raises CorruptError for a file that cannot be read, ConfigError that names each setting that differs.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        then = json.loads(state.pop("settings"))
    except (RuntimeError, UnpicklingError, EOFError, KeyError, ValueError) as error:
        raise CorruptError(f"{path} cannot be read ({error}); delete it to begin again", field="out") from error
    found = differences(json.loads(json.dumps(settings)), then)
    if found:
        listing = "; ".join(f"{field}: now {now!r}, then {before!r}" for field, now, before in found)
        raise ConfigError(
            f"{path} was made with other settings: {listing}. Set them back, or give another `out`", field=found[0][0]
        )
    return state
