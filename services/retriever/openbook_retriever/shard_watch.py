"""Follows the registry for a shard process: loads what is live, candidate or previous, reports, unloads the rest.

Everything happens on two threads of its own, one that polls and reports and one that loads, never on those that
serve. A registry that cannot be read changes nothing: what was loaded is served on.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

from openbook_core.errors import OpenbookError
from openbook_core.telemetry import get_logger
from openbook_database.registry.base import Registry
from openbook_database.registry.records import Control, KnownSnapshot, ReplicaReport, ReplicaSnapshot
from openbook_database.snapshot import Snapshot
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.holdings import Holdings
from openbook_retriever.metrics import LOAD_FAILURES, LOADS, REGISTRY_ERRORS, UNLOADS

_log = get_logger("openbook_retriever.shard_watch")


class ShardWatch:
    """Start it once the address is known; stop it before the server goes."""

    def __init__(self, config: RetrieverConfig, registry: Registry, holdings: Holdings) -> None:
        self._config = config
        self._registry = registry
        self._holdings = holdings
        self._known: dict[tuple[str, str], KnownSnapshot] = {}
        self._controls: dict[str, Control] = {}
        self._reported: dict[str, tuple[float, int, tuple[ReplicaSnapshot, ...]]] = {}
        self._databases: tuple[str, ...] = config.databases
        self._failing: set[str] = set()
        self._listed_at = -1e9
        self._name = ""
        self._address = ""
        self._stop = Event()
        self._settled = Event()
        self._thread = Thread(target=self._run, name="shard-watch", daemon=True)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="shard-load")

    def start(self, name: str, address: str) -> None:
        self._name, self._address = name, address
        self._thread.start()

    def wait_settled(self, timeout_s: float | None = None) -> bool:
        """Wait until what was wanted at the first look is loaded or has failed."""
        return self._settled.wait(timeout_s)

    def stop(self) -> None:
        """Stop following and take the reports back."""
        self._stop.set()
        self._thread.join()
        self._loader.shutdown(wait=True, cancel_futures=True)
        for database, control in self._controls.items():
            try:
                self._registry.withdraw(self._replica_report(database, control, ()))
            except (OpenbookError, OSError) as error:
                _log.warning("database %s: report not withdrawn: %s", database, error)

    def _run(self) -> None:
        while not self._stop.is_set():
            for database in self._find_databases():
                try:
                    self._poll(database)
                except (OpenbookError, OSError) as error:
                    self._note_failure(database, str(error))
                else:
                    self._failing.discard(database)
            if self._holdings.settled():
                self._settled.set()
            self._stop.wait(self._config.poll_interval_s)

    def _note_failure(self, database: str, error: str) -> None:
        """Count each failure, log the first of a row."""
        REGISTRY_ERRORS.inc()
        if database not in self._failing:
            _log.warning("database %s: registry not read, nothing is changed: %s", database, error)
        self._failing.add(database)

    def _find_databases(self) -> tuple[str, ...]:
        """The configured databases, or all that were ever seen in the registry, looked for at each heartbeat."""
        if self._config.databases or time.monotonic() - self._listed_at < self._config.heartbeat_s:
            return self._databases
        self._listed_at = time.monotonic()
        try:
            listed = {state.control.database for state in self._registry.list()}
            self._databases = tuple(sorted(listed | set(self._databases)))
        except (OpenbookError, OSError) as error:
            REGISTRY_ERRORS.inc()
            _log.warning("registry not listed: %s", error)
        return self._databases

    def _poll(self, database: str) -> None:
        control = self._registry.control(database)
        known = self._controls.get(database, control)
        if (control.epoch, control.fence) < (known.epoch, known.fence):
            control = known
        self._controls[database] = control
        self._holdings.set_live(database, control.live or "")
        wanted = [snapshot for snapshot in (control.live, control.candidate, control.previous) if snapshot]
        for snapshot in wanted:
            self._begin_load(database, snapshot)
        for snapshot in self._holdings.keep_only(database, wanted):
            UNLOADS.inc()
            _log.info("database %s: snapshot %s unloaded", database, snapshot[:12])
        self._report(database, control)

    def _begin_load(self, database: str, snapshot: str) -> None:
        known = self._known.get((database, snapshot))
        if known is None:
            known = self._known[database, snapshot] = self._registry.snapshot(database, snapshot)
        shards = tuple(n for n in range(known.shards) if n % self._config.member_count == self._config.member_index)
        if self._holdings.begin(database, snapshot, shards, self._config.load_retry_s):
            self._loader.submit(self._load, database, known, shards)

    def _load(self, database: str, known: KnownSnapshot, shards: tuple[int, ...]) -> None:
        started = time.monotonic()
        try:
            opened = Snapshot.open(Path(known.url), self._config.verify, shards=shards, expected_id=known.snapshot)
            opened.check_golden()
        except (OpenbookError, OSError, ValueError, RuntimeError, MemoryError) as error:
            LOAD_FAILURES.inc()
            self._holdings.failed(database, known.snapshot, str(error))
            _log.error("database %s: snapshot %s not loaded: %s", database, known.snapshot[:12], error)
            return
        LOADS.inc()
        self._holdings.loaded(database, opened)
        seconds = time.monotonic() - started
        _log.info("database %s: snapshot %s loaded, shards %s, %.2f s", database, known.snapshot[:12], shards, seconds)

    def _report(self, database: str, control: Control) -> None:
        """Tell the registry what is held: at once where it changed, else at each heartbeat."""
        held = self._holdings.report(database)
        now = time.monotonic()
        last = self._reported.get(database)
        if last is not None and last[1:] == (control.epoch, held) and now - last[0] < self._config.heartbeat_s:
            return
        self._registry.report_replica(self._replica_report(database, control, held))
        self._reported[database] = (now, control.epoch, held)

    def _replica_report(self, database: str, control: Control, held: tuple[ReplicaSnapshot, ...]) -> ReplicaReport:
        return ReplicaReport(
            database=database, name=self._name, address=self._address, epoch=control.epoch, snapshots=held
        )
