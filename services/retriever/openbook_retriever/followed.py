"""Which databases a watch follows, and which of them could not be read last."""

from __future__ import annotations

import time
from collections.abc import Collection

from openbook_core.telemetry import get_logger
from openbook_database.registry.base import Registry
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.metrics import REGISTRY_ERRORS

_log = get_logger("openbook_retriever.followed")


class Followed:
    """The configured databases, or all that were ever seen in the registry, looked for at each heartbeat."""

    def __init__(self, config: RetrieverConfig, registry: Registry) -> None:
        self._config = config
        self._registry = registry
        self._names: tuple[str, ...] = config.databases
        self._failing: set[str] = set()
        self._listed_at = -1e9

    def names(self, also: Collection[str] = ()) -> tuple[str, ...]:
        """Databases to look at now; `also` are followed from now on. A registry that cannot be listed adds none."""
        if self._config.databases or time.monotonic() - self._listed_at < self._config.heartbeat_s:
            return self._names
        self._listed_at = time.monotonic()
        listed: set[str] = set()
        try:
            listed = {state.control.database for state in self._registry.list()}
        except Exception as error:  # noqa: BLE001  # what was loaded is served on, whatever the registry does
            REGISTRY_ERRORS.inc()
            _log.warning("registry not listed: %s", error)
        self._names = tuple(sorted({*listed, *self._names, *also}))
        return self._names

    def failed(self, database: str, error: Exception) -> None:
        """Count each failure, log the first of a row."""
        REGISTRY_ERRORS.inc()
        if database not in self._failing:
            _log.warning(
                "database %s: registry not read, nothing is changed: %s: %s", database, type(error).__name__, error
            )
        self._failing.add(database)

    def succeeded(self, database: str) -> None:
        """The next failure is the first of a row again."""
        self._failing.discard(database)
