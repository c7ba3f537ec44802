"""Where the snapshots of a shard process compute: on the processor, or their rough scores on one GPU."""

from __future__ import annotations

import re

from openbook_core.errors import OpenbookError
from openbook_core.telemetry import get_logger
from openbook_database.index.gpu import Gpu, require_device
from openbook_database.snapshot import Snapshot
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.metrics import DEVICE_FALLBACKS, DEVICE_PASSES

_log = get_logger("openbook_retriever.placement")


class Placement:
    """Follows `device`. Each snapshot has resources of its own on the GPU, which go with it.

    With `device_fallback` what the GPU cannot do is the processor's, logged and counted; else it is an error.
    """

    def __init__(self, config: RetrieverConfig) -> None:
        """Raises ConfigError where the device is not there and there is nothing to fall back to."""
        self._device = device_number(config.device)
        self._falls_back = config.device_fallback
        self._temporary_bytes = int(config.device_work_mb * 1e6)
        if self._device is not None and not self._falls_back:
            require_device(self._device)

    def place(self, opened: Snapshot) -> bool:
        """Move a snapshot to its device; False where that failed and it may fall back: open it anew, then, as part of it may
        have been moved."""
        if self._device is None:
            return True
        try:
            failed = self._failed if self._falls_back else None
            gpu = Gpu(self._device, temporary_bytes=self._temporary_bytes, passed=DEVICE_PASSES.inc, failed=failed)
            opened.move_to(gpu)
        except OpenbookError as error:
            if not self._falls_back:
                raise
            DEVICE_FALLBACKS.inc()
            _log.warning("snapshot %s is served by the processor: %s", opened.id[:12], error)
            return False
        _log.info("snapshot %s is on %s", opened.id[:12], gpu)
        return True

    def _failed(self, error: RuntimeError) -> None:
        DEVICE_FALLBACKS.inc()
        _log.warning("a search on cuda:%d failed, the processor does it: %s", self._device, error)


def device_number(device: str) -> int | None:
    """Number of the GPU in "cuda:N" or "cuda"; None for "cpu"."""
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    return int(found[1] or 0) if found else None
