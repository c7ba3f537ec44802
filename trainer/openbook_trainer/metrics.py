"""What a run reports, from process 0: JSON Lines on standard output and in `out/metrics.jsonl`; TensorBoard if asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openbook_core.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


class Metrics:
    """Appends records. On resume the lines of steps after the checkpoint are dropped: they will come again."""

    def __init__(self, path: Path, *, first: bool, resumed_at: int, tensorboard: Path | None = None) -> None:
        """`tensorboard`: the folder of its event files. Raises ConfigError where the package is not installed."""
        self._path, self._first = path, first
        self._events: SummaryWriter | None = None
        if not first:
            return
        if tensorboard is not None:
            self._events = _events(tensorboard, resumed_at)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if resumed_at and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= resumed_at:
                        kept.append(line + "\n")
                except ValueError:  # the line that a kill cut off
                    continue
        path.write_text("".join(kept), encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """One line, which has a `step`."""
        self.note(record)
        if self._events is not None:
            for name, value in flat(record).items():
                if name != "step" and value is not None:
                    self._events.add_scalar(name, value, record["step"])
            self._events.flush()

    def note(self, record: dict[str, Any]) -> None:
        """One line, which has a `step`, that is no figure to draw."""
        if self._first:
            line = json.dumps(record)
            print(line, flush=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def close(self) -> None:
        """Nothing is written after it."""
        if self._events is not None:
            self._events.close()


def flat(record: dict[str, Any]) -> dict[str, float | None]:
    """Figures by name; those of a group as `group/name`."""
    found: dict[str, float | None] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= {f"{name}/{key}": each for key, each in value.items()}
        else:
            found[name] = value
    return found


def _events(folder: Path, resumed_at: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard: the package is not installed; pip install 'openbook-trainer[tensorboard]', or leave the setting "
            "out",
            field="tensorboard",
        ) from error
    # Events of steps after the checkpoint are void: those steps come again.
    return SummaryWriter(str(folder), purge_step=resumed_at + 1 if resumed_at else None)
