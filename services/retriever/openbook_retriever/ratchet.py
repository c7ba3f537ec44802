"""The highest record of each database that this process has seen, on local disk: it outlives process and registry.

Restarted, a process goes on from it and tells a registry that lost it or was set back in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from openbook_core.errors import CorruptError, OpenbookError
from openbook_core.telemetry import get_logger
from openbook_database.contract import Contract
from openbook_database.registry.base import Registry, is_database_name
from openbook_database.registry.directory import read_json, write_json
from openbook_database.registry.records import Control, KnownSnapshot

_LOCK_TIMEOUT_S = 5.0
_log = get_logger("openbook_retriever.ratchet")


@dataclass(frozen=True)
class Seen:
    """A record, with what a registry needs to have it again."""

    contract: Contract
    control: Control
    snapshots: tuple[KnownSnapshot, ...]

    @property
    def height(self) -> tuple[int, int]:
        return self.control.epoch, self.control.fence


class Ratchet:
    """Records in `folder`, FOLDER/DATABASE.json; in memory alone where it is None. Processes may share a folder.

    A folder that cannot be read or written is told in the log, and serving goes on.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._seen: dict[str, Seen] = {}
        if folder is None:
            return
        for path in sorted(folder.glob("*.json")):
            if is_database_name(path.stem):
                try:
                    seen = _read(path)
                except OpenbookError as error:
                    _log.warning("what was seen before is not known: %s", error)
                    continue
                if seen is not None:
                    self._seen[path.stem] = seen

    def all(self) -> Sequence[Seen]:
        return list(self._seen.values())

    def get(self, database: str) -> Seen | None:
        return self._seen.get(database)

    def raise_to(self, seen: Seen) -> None:
        """Keep `seen` where it is higher than what was seen before."""
        database = seen.control.database
        last = self._seen.get(database)
        if last is not None and last.height >= seen.height and len(last.snapshots) >= len(seen.snapshots):
            return
        self._seen[database] = seen
        if self._folder is None:
            return
        path = self._folder / f"{database}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / f".{database}.lock", timeout=_LOCK_TIMEOUT_S):
                stored = _read(path)
                if stored is None or stored.height <= seen.height:
                    write_json(path, _record(seen))
        except (OpenbookError, OSError, Timeout) as error:
            _log.warning("database %s: epoch %s is not kept on disk: %s", database, seen.control.epoch, error)

    def tell(self, registry: Registry, database: str, actor: str) -> bool:
        """Write the record into a registry that has an older one or none; whether it was raised."""
        seen = self._seen.get(database)
        if seen is None or not registry.restore(seen.contract, seen.control, seen.snapshots, actor=actor):
            return False
        _log.warning("database %s: the registry had lost epoch %s, restored", database, seen.control.epoch)
        return True


def _record(seen: Seen) -> dict[str, object]:
    return {
        "contract": seen.contract.to_record(),
        "control": seen.control.to_record(),
        "snapshots": [known.to_record() for known in seen.snapshots],
    }


def _read(path: Path) -> Seen | None:
    record = read_json(path)
    if record is None:
        return None
    try:
        return Seen(
            Contract.from_record(record["contract"], str(path)),
            Control.from_record(record["control"]),
            tuple(KnownSnapshot.from_record(known) for known in record["snapshots"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{path}: cannot be read: {error!r}") from error
