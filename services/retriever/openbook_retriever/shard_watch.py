"""Follows the registry for a shard process: loads what is live, candidate, previous or leased, reports, unloads the rest.

Everything happens on two threads of its own, one that polls and reports and one that loads, never on those that
serve; what a load costs in time and memory is a child's (`loading`). A registry that cannot be read changes nothing: what
was loaded is served on. No error ends the heartbeats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from openbook_core.errors import NotFoundError, OpenbookError, Reason
from openbook_core.sizes import readable
from openbook_core.telemetry import get_logger
from openbook_database.gpu_size import gpu_bytes_of
from openbook_database.index.gpu import CONTEXT, needed_bytes
from openbook_database.manifest import Manifest
from openbook_database.mapped import Files, files_of, shards_of
from openbook_database.registry.base import Registry
from openbook_database.registry.records import Control, KnownSnapshot, ReplicaReport, ReplicaSnapshot
from openbook_database.registry.rolling import stays_served
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.followed import Followed
from openbook_retriever.holdings import Holdings
from openbook_retriever.loading import GivenUpError, Loader
from openbook_retriever.metrics import LOAD_FAILURES, LOADS, LOST, UNLOADS
from openbook_retriever.ratchet import Ratchet, Seen

_log = get_logger("openbook_retriever.shard_watch")


class ShardWatch:
    """Start it once the address is known; stop it before the server goes."""

    def __init__(self, config: RetrieverConfig, registry: Registry, holdings: Holdings) -> None:
        self._config = config
        self._device = "" if config.device == "cpu" else config.device
        self._registry = registry
        self._holdings = holdings
        self._ratchet = Ratchet(config.state_dir)
        self._controls: dict[str, Control] = {seen.control.database: seen.control for seen in self._ratchet.all()}
        self._reported: dict[str, tuple[float, int, tuple[ReplicaSnapshot, ...]]] = {}
        self._followed = Followed(config, registry)
        self._name = ""
        self._address = ""
        self._health: Callable[[str, bool], None] = lambda database, ready: None
        self._stop = Event()
        self._settled = Event()
        self._thread = Thread(target=self._run, name="shard-watch", daemon=True)
        self._loader = Loader(config)
        self._loads = ThreadPoolExecutor(1, thread_name_prefix="shard-load")

    def start(
        self, name: str, address: str, health: Callable[[str, bool], None] = lambda database, ready: None
    ) -> None:
        """`health` is told of each database whether its live snapshot is answered from here."""
        self._name, self._address, self._health = name, address, health
        self._thread.start()

    def wait_settled(self, timeout_s: float | None = None) -> bool:
        """Wait until what was wanted at the first look is loaded or has failed."""
        return self._settled.wait(timeout_s)

    def stop(self) -> None:
        """Stop following and take the reports back; may be called again."""
        self._stop.set()
        self._thread.join()
        self._loads.shutdown(wait=False, cancel_futures=True)
        self._loader.stop()
        for database, control in self._controls.items():
            try:
                self._registry.withdraw(self._replica_report(database, control, ()))
            except (OpenbookError, OSError) as error:
                _log.warning("database %s: report not withdrawn: %s", database, error)

    def _run(self) -> None:
        while not self._stop.is_set():
            for why in self._holdings.drop_lost():
                LOST.inc()
                _log.error("a snapshot is loaded anew: %s", why)
            for database in self._followed.names(tuple(self._controls)):
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
        try:
            control = self._registry.control(database)
        except NotFoundError:
            if not self._ratchet.tell(self._registry, database, self._name):
                raise
            control = self._registry.control(database)
        known = self._controls.get(database, control)
        if (control.epoch, control.fence) < (known.epoch, known.fence):
            control = known
            self._ratchet.tell(self._registry, database, self._name)
        elif (control.epoch, control.fence) > (known.epoch, known.fence) or self._ratchet.get(database) is None:
            self._remember(control)
        self._controls[database] = control
        self._holdings.set_live(database, control.live or "")
        leased = sorted({lease.snapshot for lease in self._registry.leases(database)})
        wanted = self._wanted(control, leased)
        # Of what is given up for a rolling swap the other replicas answer at once.
        drain_s = 0.0 if control.candidate and self._name in control.first else self._config.drain_s
        try:
            for snapshot in wanted:
                self._begin_load(database, snapshot, wanted, alone=bool(control.first))
            self._loader.give_up(self._holdings.loading(database) - set(wanted))
            for snapshot in self._holdings.keep_only(database, wanted, drain_s):
                UNLOADS.inc()
                _log.info("database %s: snapshot %s unloaded", database, snapshot[:12])
        finally:
            self._health(database, self._holdings.answers(database, control.live or ""))
            self._report(database, control)

    def _wanted(self, control: Control, leased: Sequence[str]) -> list[str]:
        """What to hold. In a rolling swap the live snapshot is given up only while other replicas serve what this one does."""
        wanted = control.wanted_by(self._name, leased, self._holdings.ready(control.database))
        live = control.live
        if live and control.candidate and live not in wanted:
            mine = self._holdings.serves(control.database, live)
            replicas = self._registry.replicas(control.database) if mine else ()
            if not stays_served(replicas, control.first, live, mine):
                return [name for name in (live, control.previous, *leased) if name and name != control.candidate]
        return wanted

    def _remember(self, control: Control) -> None:
        """Keep the record on disk, with those of its snapshots that are registered."""
        known = []
        for name in (control.live, control.previous, control.candidate):
            with suppress(NotFoundError):
                known += [self._registry.snapshot(control.database, name)] if name else []
        self._ratchet.raise_to(Seen(self._registry.contract(control.database), control, tuple(known)))

    def _begin_load(self, database: str, snapshot: str, wanted: Sequence[str], *, alone: bool) -> None:
        """The registry is read at each load: a repaired copy may have been registered in another folder. What does not fit
        beside a snapshot that is on its way out, or is to be `alone`, waits for that."""
        if not self._holdings.lacks(database, snapshot, self._config.load_retry_s):
            return
        known = self._registry.snapshot(database, snapshot)
        shards = shards_of(self._config.member_index, self._config.member_count, known.shards)
        if self._holdings.names(database) - set(wanted) and (alone or not self._has_room(known, shards)):
            return
        self._holdings.begin(database, snapshot, shards)
        self._loads.submit(self._load, database, known, shards)

    def _load(self, database: str, known: KnownSnapshot, shards: tuple[int, ...]) -> None:
        started = time.monotonic()
        try:
            files = self._require_room(known, shards)
            opened, device = self._loader.load(known, shards)
        except GivenUpError:
            self._holdings.forget(database, known.snapshot)
            return
        except Exception as error:  # noqa: BLE001  # or it would be loading forever
            LOAD_FAILURES.inc()
            why = str(error) if isinstance(error, OpenbookError) else f"{type(error).__name__}: {error}"
            reason = error.reason if isinstance(error, OpenbookError) else Reason.INTERNAL
            self._holdings.failed(database, known.snapshot, why, reason)
            _log.exception("database %s: snapshot %s not loaded", database, known.snapshot[:12])
            return
        LOADS.inc()
        self._holdings.loaded(database, opened, files, device)
        seconds = time.monotonic() - started
        _log.info("database %s: snapshot %s loaded, shards %s, %.2f s", database, known.snapshot[:12], shards, seconds)

    def _has_room(self, known: KnownSnapshot, shards: tuple[int, ...]) -> bool:
        """Also where the files cannot be looked at: the load will say why."""
        try:
            self._require_room(known, shards)
            memory = self._holdings.device_memory()
            if self._device and memory.total:
                index_bytes = gpu_bytes_of(Path(known.url), Manifest.read(Path(known.url)), shards)
                return CONTEXT + needed_bytes(index_bytes, self._config.device_work_bytes) <= memory.free
        except OpenbookError as error:
            return error.reason is not Reason.OUT_OF_MEMORY
        except OSError:
            return True
        return True

    def _require_room(self, known: KnownSnapshot, shards: tuple[int, ...]) -> Files:
        """The files to be mapped; raises OpenbookError with the numbers where they are more than there is room for."""
        folder = Path(known.url)
        files = files_of(folder, Manifest.read(folder), shards)
        held, limit = self._holdings.bytes(), self._config.bytes_limit
        more = self._holdings.bytes(files) - held
        if limit and held + more > limit:
            raise OpenbookError(
                f"snapshot {known.snapshot[:12]} would map {readable(more)} more here, {readable(held)} are mapped, and the "
                f"limit is {readable(limit)}: raise memory_limit_mb, add members that share the shards, or retire a snapshot",
                reason=Reason.OUT_OF_MEMORY,
            )
        return files

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
        memory = self._holdings.device_memory()
        return ReplicaReport(
            database=database,
            name=self._name,
            address=self._address,
            epoch=control.epoch,
            snapshots=held,
            bytes=self._holdings.bytes(),
            bytes_limit=self._config.bytes_limit,
            member_index=self._config.member_index,
            member_count=self._config.member_count,
            device=self._device,
            device_free=memory.free,
            device_total=0 if self._config.device_fallback else memory.total,
            device_work=self._config.device_work_bytes,
        )
