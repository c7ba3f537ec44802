"""Checkpoints written while training goes on: the state is copied first, one save at a time, its error is raised later.

Files are written and checksummed in a draft folder; process 0 gives it its name when all processes have written.
"""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save

from openbook_core.errors import OpenbookError
from openbook_core.files import sync
from openbook_model import RetroModel
from openbook_trainer.checkpoint import TRAINED, RunState, steps_of, write_state
from openbook_trainer.distributed import World
from openbook_trainer.optimiser import Optimisers

logger = logging.getLogger(__name__)


class Saver:
    """The checkpoints of one run, the newest `keep` of which stay. `start` and `finish` are called by every process."""

    def __init__(self, folder: Path, world: World, keep: int) -> None:
        self._folder, self._world, self._keep = folder, world, keep
        # The writers' collective calls must not mix with those of the steps that run meanwhile.
        self._group = dist.new_group(backend="gloo")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None

    def start(self, model: RetroModel, optimisers: Optimisers, state: RunState) -> Path:
        """Copy the state and write it in the background; the folder that it will be in. Waits for the save before.

        Raises OpenbookError where that one failed, or where no draft can be begun.
        """
        self.finish()
        target = self._folder / f"step-{state.step:08d}"
        draft = self._folder / f".{target.name}.draft"
        self._world.from_first(lambda: self._begin(draft, state.step))
        weights, moments = get_state_dict(model, optimisers, options=TRAINED)
        tensors = {"model": weights, "optimiser": moments}
        writing = async_save(tensors, checkpoint_id=draft, process_group=self._group)
        assert not isinstance(writing, AsyncSaveResponse), "the state is copied before async_save returns"
        self._pending = state.step, self._pool.submit(self._complete, writing, draft, target, state)
        return target

    def poll(self) -> None:
        """Raise the OpenbookError of a save that has failed by now; waits for nothing."""
        if self._pending is not None and self._pending[1].done():
            self._take()

    def finish(self) -> None:
        """Wait until nothing is being written. Raises OpenbookError, on all processes, where that failed on one."""
        self._world.together(self._take)

    def close(self) -> None:
        """Wait for the save in flight, if any, whose error is only logged: the run ends for another reason."""
        try:
            self._take()
        except OpenbookError as error:
            logger.warning("%s", error)
        self._pool.shutdown()

    def _take(self) -> None:
        if self._pending is None:
            return
        (step, writing), self._pending = self._pending, None
        try:
            writing.result()
        except (OSError, RuntimeError, CheckpointException) as error:
            raise self._failed(step, error) from error

    def _begin(self, draft: Path, step: int) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left_over in self._folder.glob(".step-*.draft"):
                shutil.rmtree(left_over)
            for replaced in self._folder.glob(".step-*.aside"):
                if (self._folder / replaced.stem[1:]).exists():
                    shutil.rmtree(replaced)
            draft.mkdir()
        except OSError as error:
            raise self._failed(step, error) from error

    def _complete(self, writing: Future[object], draft: Path, target: Path, state: RunState) -> None:
        """After the tensors of all processes: checksums, the name, and the oldest ones go."""
        try:
            writing.result()
            if self._world.first:
                self._name(draft, target, state)
        except (OSError, RuntimeError, CheckpointException):
            if self._world.first:
                shutil.rmtree(draft, ignore_errors=True)
            raise

    def _name(self, draft: Path, target: Path, state: RunState) -> None:
        write_state(draft, state)
        for file in draft.iterdir():
            sync(file)
        aside = self._folder / f".{target.name}.aside"
        if target.exists():
            target.rename(aside)
        draft.rename(target)
        sync(self._folder)
        shutil.rmtree(aside, ignore_errors=True)
        for _, old in steps_of(self._folder)[self._keep :]:
            shutil.rmtree(old)

    def _failed(self, step: int, error: BaseException) -> OpenbookError:
        older = steps_of(self._folder)
        kept = f"{older[0][1]} stays as it was" if older else "there is no older one"
        cause = _cause(error, self._folder)
        return OpenbookError(
            f"the checkpoint of step {step} could not be written to {self._folder}: {cause}. {kept}; see to the disk and run "
            "the same command to go on",
            field="out",
        )


def _cause(error: BaseException, folder: Path) -> str:
    """What the operating system said, wherever in a chain of errors; else the innermost error, and how full the disk is:
    torch's writer keeps the system's word to itself where a write falls short."""
    seen = [error]
    for each in seen:
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
        if isinstance(each, CheckpointException):
            seen += [wrapped[0] for wrapped in each.failures.values()]
        seen += [cause for cause in (each.__cause__, each.__context__) if cause is not None and cause not in seen]
    first_line = str(seen[-1]).partition("\n")[0]
    place = folder.resolve()
    free = shutil.disk_usage(next(each for each in (place, *place.parents) if each.is_dir())).free
    return f"{type(seen[-1]).__name__}: {first_line} ({free / 1e6:,.1f} MB are free there)"
