"""The engine on a Ray cluster: items are rows of a Ray Data set, done by actors that open the job once each.

The work folder and the model must lie under the same paths on every node, on a file system that they share: results are
the same files that the local engine writes. A lost actor is Ray's to replace; its item is done again.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from openbook_core.errors import ConfigError, UnavailableError
from openbook_database.build.embed_stage import EmbedJob
from openbook_database.build.engine import Job, Told, Worker
from openbook_database.encoder import Encoder

_MOST_BLOCKS = 1000


class RayEngine:
    """Connects at the first item; `close` disconnects, and ends a cluster that was started by address "local"."""

    def __init__(
        self, load_encoder: Callable[[], Encoder], *, address: str | None = None, cpus: float = 1.0, gpus: float = 0.0
    ) -> None:
        """`load_encoder` must be picklable. `address`: as of `ray.init`, or RAY_ADDRESS where it is None. `cpus` and
        `gpus`: of each actor; only those of the embed stage take GPUs.

        Raises ConfigError where Ray is not installed or no address is known.
        """
        self.load_encoder = load_encoder
        self._address = address or os.environ.get("RAY_ADDRESS", "")
        self._cpus, self._gpus = cpus, gpus
        self._connected = False
        if not self._address:
            raise ConfigError("ray_address: name the cluster, or set RAY_ADDRESS", field="ray_address")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray.data
        except ImportError as error:
            raise ConfigError(
                "engine: Ray is not installed; pip install 'openbook-database[ray]'", field="engine"
            ) from error
        self._ray: Any = ray
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def map(
        self, job: Job, items: Sequence[int], *, name: str, item_bytes: int, told: Told = lambda item, rows: None
    ) -> Generator[int]:
        """See `engine.Engine`; nothing is told before an item is done."""
        if not items:
            return
        self._connect()
        data = self._ray.data
        rows = data.from_items([{"item": item} for item in items], override_num_blocks=min(len(items), _MOST_BLOCKS))
        done = rows.map_batches(
            _Actor,
            fn_constructor_args=(job, name),
            batch_size=1,
            compute=data.ActorPoolStrategy(min_size=1, max_size=len(items)),
            num_cpus=self._cpus,
            num_gpus=self._gpus if isinstance(job, EmbedJob) else 0,
            memory=item_bytes,
        )
        try:
            for row in done.iter_rows():
                if row["error"]:
                    raise pickle.loads(row["error"])
                yield int(row["item"])
        except self._ray.exceptions.RayError as error:
            raise UnavailableError(f"{name}: Ray gave up: {error}. Run the same command again: it goes on") from error

    def close(self) -> None:
        """Disconnect, and end a cluster of its own."""
        if self._connected:
            self._connected = False
            self._ray.shutdown()

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        local: dict[str, Any] = {"include_dashboard": False} if self._address == "local" else {}
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnavailableError(f"no Ray cluster at {self._address}: {error}", field="ray_address") from error
        self._connected = True


class _Actor:
    def __init__(self, job: Job, name: str) -> None:
        self._worker = Worker(job, name)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        error = self._worker.do(int(batch["item"][0]))
        return {"item": batch["item"], "error": [b"" if error is None else pickle.dumps(error)]}
