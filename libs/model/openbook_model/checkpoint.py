"""A model as a directory: config.json, model.safetensors, and the tokenizer's files. Written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from openbook_core.errors import (
    ConflictError,
    CorruptError,
    InputError,
    NotFoundError,
    Reason,
)
from openbook_model.config import RetroConfig
from openbook_model.finite import is_finite
from openbook_model.folders import mend, written_whole
from openbook_model.model import RetroModel
from openbook_model.tensor_file import write_tensors

FORMAT = "openbook-retro"
FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE, PROMPT_FILE = "config.json", "model.safetensors", "prompt.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def save(
    model: RetroModel,
    path: str | Path,
    tokenizer_dir: str | Path | None = None,
    *,
    prompt: Mapping[str, Any] | None = None,
) -> None:
    """Write the model's directory, with the tokenizer files found in `tokenizer_dir`, by one rename.

    `prompt`: settings of the prompt that it was tuned with, for `read_prompt`.

    Replaces an older model directory; raises ConflictError if `path` is anything else, NotFoundError if the tokenizer
    folder has no tokenizer.json.
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and (_is_ours(target) or not any(target.iterdir()))):
        raise ConflictError(
            f"{target} exists and is not a model directory; choose another path or remove it",
            field="path",
            reason=Reason.ALREADY_EXISTS,
        )
    with written_whole(target) as draft:
        if tokenizer_dir is not None:
            _copy_tokenizer(Path(tokenizer_dir), draft)
        tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
        write_tensors(tensors, draft / WEIGHTS_FILE)
        record = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": model.config.model_dump(mode="json"),
        }
        (draft / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if prompt is not None:
            write_prompt(draft, prompt)


def write_prompt(folder: Path, prompt: Mapping[str, Any]) -> None:
    """Add the settings of the prompt to the folder of a model or an adapter."""
    (folder / PROMPT_FILE).write_text(json.dumps(prompt, indent=1) + "\n", encoding="utf-8")


def read_prompt(folder: Path) -> dict[str, Any] | None:
    """The prompt's settings that a model or an adapter was tuned with, None where its folder says nothing of them.

    Raises CorruptError where they are no JSON object.
    """
    file = folder / PROMPT_FILE
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CorruptError(f"{file} cannot be read: {error}", field="prompt") from error


def load(path: str | Path, dtype: torch.dtype | None = None) -> RetroModel:
    """The model of a directory that `save` wrote, in float32 unless a dtype is named, in evaluation mode on the CPU.

    Raises NotFoundError for a missing file, CorruptError for a truncated one, InputError for another format,
    parameters that do not fit the configuration, or values that are not finite.
    """
    folder = Path(path)
    if not folder.exists():
        mend(folder)
    config = read_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise NotFoundError(f"{folder} holds no {WEIGHTS_FILE}", field="model")
    model = RetroModel.allocate(config, dtype or torch.float32)
    parameters = dict(model.named_parameters())
    try:
        with safe_open(weights, framework="pt") as file, torch.no_grad():
            names = set(file.keys())
            _check_names(folder, set(parameters), names)
            for name, parameter in parameters.items():
                tensor = file.get_tensor(name)
                if tensor.shape != parameter.shape:
                    raise InputError(
                        f"{weights}: {name} has shape {list(tensor.shape)}, {CONFIG_FILE} asks for "
                        f"{list(parameter.shape)}",
                        field="model",
                    )
                if not is_finite(tensor):
                    raise InputError(f"{weights}: {name} holds NaN or infinite values", field="model")
                parameter.copy_(tensor)
    except (SafetensorError, OSError) as error:
        raise CorruptError(
            f"{weights} is truncated or not a safetensors file ({error}); copy or convert the model again",
            field="model",
        ) from error
    return model.eval()


def read_config(folder: Path) -> RetroConfig:
    """The configuration in a model directory; errors as in `load`."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise NotFoundError(f"no model at {folder}: it holds no {CONFIG_FILE}", field="model")
    record = _read_record(path)
    if record.get("format") != FORMAT:
        architecture = record.get("architectures") or record.get("model_type") or record.get("implementation")
        raise InputError(
            f"{path} is not an Openbook model (architecture {architecture!r}); convert it with "
            "`openbook model convert`",
            field="model",
        )
    if record.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {record.get('format_version')!r}; this release reads {FORMAT_VERSION}",
            field="model",
        )
    return RetroConfig.parse(record.get("model") or {}, source=str(path))


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"{path} is not JSON: {error}", field="model") from error
    if not isinstance(record, dict):
        raise CorruptError(f"{path} must hold an object", field="model")
    return record


def _check_names(folder: Path, ours: set[str], theirs: set[str]) -> None:
    if ours != theirs:
        missing, unknown = sorted(ours - theirs)[:5], sorted(theirs - ours)[:5]
        raise InputError(
            f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: {len(ours - theirs)} parameters missing "
            f"{missing}, {len(theirs - ours)} unknown {unknown}",
            field="model",
        )


def _is_ours(folder: Path) -> bool:
    path = folder / CONFIG_FILE
    return path.is_file() and _read_record(path).get("format") == FORMAT


def _copy_tokenizer(source: Path, target: Path) -> None:
    if not (source / "tokenizer.json").is_file():
        raise NotFoundError(f"{source} holds no tokenizer.json", field="tokenizer_dir")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
