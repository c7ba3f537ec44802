"""Follows the registry for a shard process: loads what is live, candidate, previous or leased, reports, unloads the rest.

Everything happens on two threads of its own, one that polls and reports and one that loads, never on those that
serve. A registry that cannot be read changes nothing: what was loaded is served on. No error ends the heartbeats.
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
from openbook_retriever.followed import Followed
from openbook_retriever.holdings import Holdings
from openbook_retriever.metrics import LOAD_FAILURES, LOADS, UNLOADS

_log = get_logger("openbook_retriever.shard_watch")


class ShardWatch:
    """Start it once the address is known; stop it before the server goes."""

    def __init__(self, config: RetrieverConfig, registry: Registry, holdings: Holdings) -> None:
        self._config = config
        self._registry = registry
        self._holdings = holdings
        self._controls: dict[str, Control] = {}
        self._reported: dict[str, tuple[float, int, tuple[ReplicaSnapshot, ...]]] = {}
        self._followed = Followed(config, registry)
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
        """Stop following and take the reports back; may be called again."""
        self._stop.set()
        self._thread.join()
        self._loader.shutdown(wait=False, cancel_futures=True)
        for database, control in self._controls.items():
            try:
                self._registry.withdraw(self._replica_report(database, control, ()))
            except (OpenbookError, OSError) as error:
                _log.warning("database %s: report not withdrawn: %s", database, error)

    def _run(self) -> None:
        while not self._stop.is_set():
            for database in self._followed.names():
                try:
                    self._poll(database)
                except Exception as error:  # noqa: BLE001
                    self._followed.failed(database, error)
                else:
                    self._followed.succeeded(database)
            if self._holdings.settled():
                self._settled.set()
            self._stop.wait(self._config.poll_interval_s)

    def _poll(self, database: str) -> None:
        control = self._registry.control(database)
        known = self._controls.get(database, control)
        if (control.epoch, control.fence) < (known.epoch, known.fence):
            control = known
        self._controls[database] = control
        self._holdings.set_live(database, control.live or "")
        leased = sorted({lease.snapshot for lease in self._registry.leases(database)})
        kept = (control.live, control.candidate, control.previous, *leased)
        wanted = [snapshot for snapshot in dict.fromkeys(kept) if snapshot]
        try:
            for snapshot in wanted:
                self._begin_load(database, snapshot)
            for snapshot in self._holdings.keep_only(database, wanted, self._config.drain_s):
                UNLOADS.inc()
                _log.info("database %s: snapshot %s unloaded", database, snapshot[:12])
        finally:
            self._report(database, control)

    def _begin_load(self, database: str, snapshot: str) -> None:
        """The registry is read at each load: a repaired copy may have been registered in another folder."""
        if not self._holdings.lacks(database, snapshot, self._config.load_retry_s):
            return
        known = self._registry.snapshot(database, snapshot)
        shards = tuple(n for n in range(known.shards) if n % self._config.member_count == self._config.member_index)
        self._holdings.begin(database, snapshot, shards)
        self._loader.submit(self._load, database, known, shards)

    def _load(self, database: str, known: KnownSnapshot, shards: tuple[int, ...]) -> None:
        started = time.monotonic()
        try:
            opened = Snapshot.open(Path(known.url), self._config.verify, shards=shards, expected_id=known.snapshot)
            opened.check_golden()
        except Exception as error:  # noqa: BLE001  # or it would be loading forever
            LOAD_FAILURES.inc()
            why = str(error) if isinstance(error, OpenbookError) else f"{type(error).__name__}: {error}"
            self._holdings.failed(database, known.snapshot, why)
            _log.exception("database %s: snapshot %s not loaded", database, known.snapshot[:12])
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
