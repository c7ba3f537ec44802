"""The registry in a directory: atomic renames and a lock file; for one host, or a file system with working locks.

ROOT/DATABASE/contract.json  control.json  snapshots/ID.json  replicas/NAME.json  routers/NAME.json  leases/NAME.json  audit.jsonl
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from filelock import FileLock, Timeout

from openbook_core.errors import ConflictError, CorruptError, UnavailableError
from openbook_core.files import sync
from openbook_core.fingerprint import canonical_json
from openbook_database.contract import Contract
from openbook_database.files import clear_write_errors
from openbook_database.registry.base import DEFAULT_TTL_S, Registry, is_database_name
from openbook_database.registry.records import REPORTS, AuditEntry, Control, KnownSnapshot, Report

_LOCK_TIMEOUT_S = 10.0


class DirectoryRegistry(Registry):
    """A registry in the folder `root`, which is made by the first registration."""

    def __init__(
        self, root: str | Path, *, ttl_s: float = DEFAULT_TTL_S, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(ttl_s=ttl_s, clock=clock)
        self._root = Path(root)

    def _databases(self) -> Sequence[str]:
        names = [name for name in _names(self._root) if is_database_name(name)]
        return [name for name in names if "contract.json" in _names(self._root / name)]

    def _create_contract(self, database: str, contract: Contract) -> Contract:
        path = self._root / database / "contract.json"
        with self._locked(database):
            stored = self._load_contract(database)
            if stored is None:
                write_json(path, contract.to_record())
                return contract
            return stored

    def _load_contract(self, database: str) -> Contract | None:
        path = self._root / database / "contract.json"
        record = read_json(path)
        return None if record is None else Contract.from_record(record, str(path))

    def _load_control(self, database: str) -> Control | None:
        path = self._root / database / "control.json"
        record = read_json(path)
        return None if record is None else _parse(path, Control, record)

    def _compare_and_set(self, expected: Control, new: Control) -> bool:
        with self._locked(new.database):
            now = self._load_control(new.database) or Control(new.database)
            if (now.epoch, now.fence) != (expected.epoch, expected.fence):
                return False
            write_json(self._root / new.database / "control.json", new.to_record())
            return True

    def _put_snapshot(self, database: str, known: KnownSnapshot) -> None:
        write_json(self._root / database / "snapshots" / f"{known.snapshot}.json", known.to_record())

    def _snapshots(self, database: str) -> Sequence[KnownSnapshot]:
        return _read_all(self._root / database / "snapshots", KnownSnapshot)

    def _store_report(self, kind: str, report: Report) -> None:
        write_json(self._report_path(kind, report.database, report.name), report.to_record(), durable=False)

    def _drop_report(self, kind: str, database: str, name: str) -> None:
        self._report_path(kind, database, name).unlink(missing_ok=True)

    def _load_reports(self, kind: str, database: str) -> Sequence[Report]:
        return _read_all(self._root / database / kind, REPORTS[kind])

    def _report_path(self, kind: str, database: str, name: str) -> Path:
        return self._root / database / kind / f"{quote(name, safe='')}.json"

    def _append_audit(self, database: str, entry: AuditEntry) -> None:
        path = self._root / database / "audit.jsonl"
        with clear_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as stream:
                stream.write((canonical_json(entry.to_record()) + "\n").encode())

    def _audit(self, database: str) -> Sequence[AuditEntry]:
        path = self._root / database / "audit.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [entry for line in lines if (entry := _audit_entry(line)) is not None]

    def _locked(self, database: str) -> FileLock:
        folder = self._root / database
        with clear_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return _Lock(folder / "lock", timeout=_LOCK_TIMEOUT_S)


class _Lock(FileLock):
    """A file lock whose time-out is an error for people."""

    def __enter__(self) -> Any:
        try:
            return super().__enter__()
        except Timeout as error:
            raise ConflictError(f"the registry is held by another process: {self.lock_file}; try again") from error


def _audit_entry(line: str) -> AuditEntry | None:
    """None for a line that a power cut tore."""
    try:
        return AuditEntry.from_record(json.loads(line))
    except (AttributeError, TypeError, ValueError):
        return None


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        record = json.loads(data)
    except ValueError as error:
        raise CorruptError(f"{path}: is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise CorruptError(f"{path}: holds no record")
    return record


def _names(folder: Path) -> list[str]:
    """Sorted names in a folder, none where it is missing; one that cannot be read is no empty one."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UnavailableError(f"the registry's folder {folder} cannot be read: {error.strerror}") from error


def _read_all(folder: Path, record_type: Any) -> list[Any]:
    records = []
    for name in _names(folder):
        path = folder / name
        record = read_json(path) if path.suffix == ".json" else None
        if record is not None:
            records.append(_parse(path, record_type, record))
    return records


def _parse(path: Path, record_type: Any, record: dict[str, Any]) -> Any:
    try:
        return record_type.from_record(record)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{path}: cannot be read: {error!r}") from error


def write_json(path: Path, record: dict[str, Any], *, durable: bool = True) -> None:
    """One rename; `durable` also flushes to the disk (heartbeats need not survive a power cut)."""
    with clear_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.write((canonical_json(record) + "\n").encode())
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)
