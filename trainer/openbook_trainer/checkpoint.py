"""A run's state on disk: written beside its place, checksummed, renamed; the newest valid one is resumed.

`checkpoints/step-00000100/` holds the shards that torch.distributed.checkpoint wrote and `state.json`: the step, the
settings that decide what the run computes, the pinned snapshot, and size and SHA-256 of every shard file.
A checkpoint that is written once more stands aside as `.step-00000100.aside` until its successor has its name, so that
at every moment one of them is whole and found.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.tensor import DTensor

from openbook_core.errors import ConfigError, CorruptError
from openbook_core.fingerprint import differences
from openbook_model import RetroModel
from openbook_model.finite import is_finite
from openbook_trainer.config import TrainConfig
from openbook_trainer.optimiser import Optimisers

STATE_FILE = "state.json"
FORMAT_VERSION = 1
SNAPSHOT_FIELD = "retrieval.snapshot"
Change = dict[str, Any]
_NAME = re.compile(r"step-(\d{8})|\.step-(\d{8})\.aside")
# What may change between the parts of one run: where it runs, how it is watched, when it pauses.
_FREE = ("out", "stop_at", "max_seconds", "threads", "device", "log_every", "tensorboard", "evaluation", "checkpoint")
_FREE_RETRIEVAL = ("cache", "folder", "address", "snapshot", "prefetch", "deadline_s", "retry_budget", "on_failure")
_FREE_BATCH = ("micro",)
_FREE_OPTIMISER = ("max_bad_steps",)
_FREE_COMPUTE = ("checkpointing", "peak_tflops")
# A frozen base stays in its own folder: the settings hold its hash. Reading still stops at a tensor that is missing.
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunState:
    """What is needed beside the tensors to go on: steps done, settings, the snapshot that neighbours come from.

    `changes`: what `--allow-changed` let through so far, each with its field, the values then and now, and the step.
    """

    step: int
    settings: dict[str, Any]
    snapshot: str
    changes: tuple[Change, ...] = ()


def settings_of(config: TrainConfig, corpus_digest: str, cache_digest: str = "", base_hash: str = "") -> dict[str, Any]:
    """The settings that decide what the run computes, with digests in place of the names of corpus, cache and base."""
    record = config.model_dump(mode="json", exclude=set(_FREE))
    for group, free in (
        ("retrieval", _FREE_RETRIEVAL),
        ("batch", _FREE_BATCH),
        ("corpus", ("sources", "tokenizer")),
        ("optimiser", _FREE_OPTIMISER),
        ("compute", _FREE_COMPUTE),
    ):
        for name in free:
            if record[group]:
                record[group].pop(name)
    record["corpus"]["digest"] = corpus_digest
    if cache_digest:
        record["retrieval"]["cache"] = cache_digest
    if base_hash:
        record["init"]["from"] = base_hash
    return record


def require_same(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], path: Path, allowed: Collection[str] = ()
) -> list[Change]:
    """The differences between the run's settings and those of its checkpoint, all of them in `allowed`.

    Raises ConfigError that lists the others, and for a name in `allowed` that is no setting.
    """
    known = _fields("", ours) | _fields("", theirs) | {SNAPSHOT_FIELD}
    for name in allowed:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"--allow-changed {name}: a checkpoint has no such setting{hint}", field="allow-changed")
    found = differences(ours, theirs)
    refused = [(field, now, then) for field, now, then in found if field not in allowed]
    if refused:
        listing = "; ".join(f"{field}: now {now!r}, then {then!r}" for field, now, then in refused)
        flags = " ".join(f"--allow-changed {field}" for field, _, _ in refused)
        raise ConfigError(
            f"{path} was made with other settings: {listing}. Set them back, give another `out` for a new run, or, "
            f"where the change is meant, add {flags}",
            field=refused[0][0],
        )
    return [{"field": field, "then": then, "now": now} for field, now, then in found]


def _fields(prefix: str, tree: Mapping[str, Any]) -> set[str]:
    """Dotted names of all settings, and of their groups, which may be missing as a whole on one side."""
    found = {f"{prefix}{key}" for key in tree}
    return found.union(
        *(_fields(f"{prefix}{key}.", value) for key, value in tree.items() if isinstance(value, Mapping))
    )


def write_state(folder: Path, state: RunState) -> None:
    """Add `state.json` to a folder that holds the tensors."""
    files = {file.name: _digest(file) for file in sorted(folder.iterdir())}
    record = {"format_version": FORMAT_VERSION, **asdict(state), "files": files}
    (folder / STATE_FILE).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def newest(folder: Path) -> tuple[Path, RunState] | None:
    """The newest checkpoint that is whole; damaged ones are logged and passed over.

    Raises CorruptError where there are checkpoints and none of them is whole.
    """
    found = steps_of(folder)
    problems = []
    for _, path in found:
        try:
            return path, _verify(path)
        except CorruptError as error:
            logger.warning("checkpoint passed over: %s", error)
            problems.append(error.message)
    if problems:
        raise CorruptError(f"no checkpoint in {folder} is whole: {'; '.join(problems)}", field="out")
    return None


def restore(path: Path, model: RetroModel, optimisers: Optimisers) -> None:
    """Load weights and moments in place, whatever number of processes wrote them.

    Raises ConfigError where they do not fit the model, CorruptError where they are not finite.
    """
    weights, moments = get_state_dict(model, optimisers, options=TRAINED)
    tensors = {"model": weights, "optimiser": moments}
    try:
        load_tensors(tensors, checkpoint_id=path)
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise ConfigError(
            f"{path} does not fit this model or optimiser: {reason}. Set `model` and `optimiser` back to what it was made "
            "with, or give another `out`",
            field="model",
        ) from error
    for name, tensor in _tensors("", tensors):
        if not is_finite(tensor.to_local() if isinstance(tensor, DTensor) else tensor):
            raise CorruptError(
                f"{path}: {name} holds NaN or infinite values; delete this checkpoint to go on from an older one",
                field="out",
            )
    set_state_dict(model, optimisers, model_state_dict=weights, optim_state_dict=moments, options=TRAINED)


def _tensors(prefix: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _tensors(f"{prefix}{key}.", value)
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            yield f"{prefix}{key}", value


def steps_of(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of each named checkpoint, newest first, whole or not."""
    if not folder.is_dir():
        return []
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(((int(match[1] or match[2]), path) for match, path in matches if match), reverse=True)


def _verify(path: Path) -> RunState:
    try:
        record = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        if record["format_version"] != FORMAT_VERSION:
            raise CorruptError(
                f"{path}: format version {record['format_version']}, this release reads {FORMAT_VERSION}"
            )
        for name, expected in record["files"].items():
            if _digest(path / name) != expected:
                raise CorruptError(f"{path / name} differs from its checksum")
        return RunState(int(record["step"]), record["settings"], record["snapshot"], tuple(record.get("changes", ())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CorruptError):
            raise
        raise CorruptError(f"{path} cannot be read: {error!r}") from error


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
