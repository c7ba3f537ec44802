"""Where the snapshots of a shard process are searched: here, or each in a process of its own on one GPU."""

from __future__ import annotations

import os
import re
from threading import Lock

from openbook_core.errors import OpenbookError
from openbook_core.telemetry import get_logger
from openbook_database.index.gpu import require_device
from openbook_database.snapshot import Snapshot
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.metrics import DEVICE_FALLBACKS, DEVICE_PASSES
from openbook_retriever.on_device import Load, OnDevice

_log = get_logger("openbook_retriever.placement")


class Placement:
    """Follows `device`, for one snapshot at a time. `end` ends the process that is loading one.

    With `device_fallback` what the GPU cannot do is the processor's, logged and counted; else it is an error.
    """

    def __init__(self, config: RetrieverConfig) -> None:
        """Raises ConfigError where the device is not there and there is nothing to fall back to."""
        self._device = device_number(config.device)
        self._falls_back = config.device_fallback
        self._work_bytes = config.device_work_bytes
        self._threads = config.search_threads or len(os.sched_getaffinity(0))
        self._lock = Lock()
        self._loading: OnDevice | None = None
        if self._device is not None and not self._falls_back:
            require_device(self._device)

    def place(self, opened: Snapshot) -> OnDevice | None:
        """Have `opened` searched on the device; None where it is searched here."""
        if self._device is None:
            return None
        shards = tuple(shard.number for shard in opened.shards)
        load = Load(str(opened.path), opened.id, shards, self._device, self._work_bytes)
        failed = self._failed if self._falls_back else None
        process = OnDevice(load, threads=self._threads, passed=DEVICE_PASSES.inc, failed=failed)
        with self._lock:
            self._loading = process
        try:
            process.wait_loaded(opened)
        except OpenbookError as error:
            if not self._falls_back:
                raise
            DEVICE_FALLBACKS.inc()
            _log.warning("snapshot %s is served by the processor: %s", opened.id[:12], error)
            return None
        finally:
            with self._lock:
                self._loading = None
        _log.info("snapshot %s is on cuda:%d", opened.id[:12], self._device)
        return process

    def end(self) -> None:
        """End the process that is loading a snapshot, if any: `place` fails."""
        with self._lock:
            if self._loading is not None:
                self._loading.end()

    def _failed(self, error: OpenbookError) -> None:
        DEVICE_FALLBACKS.inc()
        _log.warning("a search on cuda:%d failed, the processor does it: %s", self._device, error)


def device_number(device: str) -> int | None:
    """Number of the GPU in "cuda:N" or "cuda"; None for "cpu"."""
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    return int(found[1] or 0) if found else None
