"""A run's state on disk: written beside its place, checksummed, renamed; the newest valid one is resumed.

`checkpoints/step-00000100/` holds the shards that torch.distributed.checkpoint wrote and `state.json`: the step, the
settings that decide what the run computes, the pinned snapshot, and size and SHA-256 of every shard file.
A checkpoint that is written once more stands aside as `.step-00000100.aside` until its successor has its name, so that
at every moment one of them is whole and found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from openbook_core.errors import ConfigError, CorruptError
from openbook_core.files import sync
from openbook_core.fingerprint import differences
from openbook_model import RetroModel
from openbook_trainer.config import TrainConfig
from openbook_trainer.distributed import World
from openbook_trainer.optimiser import Optimisers

STATE_FILE = "state.json"
FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{8})|\.step-(\d{8})\.aside")
# What may change between the parts of one run: where it runs, how it is watched, when it pauses.
_FREE = ("out", "stop_at", "max_seconds", "threads", "device", "log_every", "tensorboard", "evaluation", "checkpoint")
_FREE_RETRIEVAL = ("cache", "folder", "address", "snapshot", "prefetch", "deadline_s", "retry_budget", "on_failure")
_FREE_BATCH = ("micro",)
_FREE_OPTIMISER = ("max_bad_steps",)
_FREE_COMPUTE = ("checkpointing", "peak_tflops")
# A frozen base stays in its own folder: the settings hold its hash. Reading still stops at a tensor that is missing.
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunState:
    """What is needed beside the tensors to go on: steps done, settings, the snapshot that neighbours come from."""

    step: int
    settings: dict[str, Any]
    snapshot: str


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


def require_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError that lists what differs between the run's settings and those of its checkpoint."""
    found = differences(ours, theirs)
    if found:
        listing = "; ".join(f"{field}: now {now!r}, then {then!r}" for field, now, then in found)
        raise ConfigError(
            f"{path} was made with other settings: {listing}. Set them back, or give another `out` for a new run",
            field=found[0][0],
        )


def save(folder: Path, model: RetroModel, optimisers: Optimisers, state: RunState, world: World, keep: int) -> Path:
    """Write the checkpoint of `state.step` and remove all but the newest `keep`. Called by every process."""
    target = folder / f"step-{state.step:08d}"
    draft = folder / f".{target.name}.draft"
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".step-*.draft"):
            shutil.rmtree(left_over)
        for replaced in folder.glob(".step-*.aside"):
            if (folder / replaced.stem[1:]).exists():
                shutil.rmtree(replaced)
        draft.mkdir()
    _barrier(world)
    weights, moments = get_state_dict(model, optimisers, options=_TRAINED)
    save_tensors({"model": weights, "optimiser": moments}, checkpoint_id=draft)
    if world.first:
        files = {file.name: _digest(file) for file in sorted(draft.iterdir())}
        record = {
            "format_version": FORMAT_VERSION,
            "step": state.step,
            "settings": state.settings,
            "snapshot": state.snapshot,
            "files": files,
        }
        (draft / STATE_FILE).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for file in draft.iterdir():
            sync(file)
        aside = folder / f".{target.name}.aside"
        if target.exists():
            target.rename(aside)
        draft.rename(target)
        sync(folder)
        shutil.rmtree(aside, ignore_errors=True)
        for _, old in _steps(folder)[keep:]:
            shutil.rmtree(old)
    _barrier(world)
    return target


def newest(folder: Path) -> tuple[Path, RunState] | None:
    """The newest checkpoint that is whole; damaged ones are logged and passed over.

    Raises CorruptError where there are checkpoints and none of them is whole.
    """
    found = _steps(folder)
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
    """Load weights and moments in place, whatever number of processes wrote them."""
    weights, moments = get_state_dict(model, optimisers, options=_TRAINED)
    load_tensors({"model": weights, "optimiser": moments}, checkpoint_id=path)
    set_state_dict(model, optimisers, model_state_dict=weights, optim_state_dict=moments, options=_TRAINED)


def _steps(folder: Path) -> list[tuple[int, Path]]:
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
        return RunState(int(record["step"]), record["settings"], record["snapshot"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CorruptError):
            raise
        raise CorruptError(f"{path} cannot be read: {error!r}") from error


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _barrier(world: World) -> None:
    if world.size > 1:
        dist.barrier()
