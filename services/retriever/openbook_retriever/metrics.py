"""Counters of a retriever process, in Prometheus' default registry."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# Must stay 0: each one is an internal error.
SNAPSHOT_MIX = Counter("openbook_snapshot_mix", "Answers whose parts came from different snapshots")
RESTARTS = Counter("openbook_retriever_restarts", "Requests begun again because their snapshot was retired")
REPLICA_RETRIES = Counter("openbook_retriever_replica_retries", "Shards asked again at another replica")
COALESCED = Counter("openbook_retriever_coalesced", "Calls that left the router together with others")
HEDGES = Counter("openbook_retriever_hedges", "Calls sent to a second replica because the first was late")
HEDGES_WON = Counter("openbook_retriever_hedges_won", "Of those, the ones that the second replica answered first")
CHANNELS = Gauge("openbook_retriever_channels", "Open channels of a router to shard processes")
SHARDS_MISSING = Counter("openbook_retriever_shards_missing", "Shards without an answer from any replica")
LOADS = Counter("openbook_retriever_loads", "Snapshots loaded")
LOAD_FAILURES = Counter("openbook_retriever_load_failures", "Snapshots that could not be loaded")
LOST = Counter("openbook_retriever_lost", "Snapshots whose process on a GPU ended by itself")
UNLOADS = Counter("openbook_retriever_unloads", "Snapshots unloaded")
REGISTRY_ERRORS = Counter("openbook_retriever_registry_errors", "Failed readings of the registry or writings to it")
QUEUE_QUERIES = Gauge("openbook_retriever_queue_queries", "Queries that wait for a batch")
BATCH_QUERIES = Histogram(
    "openbook_retriever_batch_queries", "Queries of each batch", buckets=[2**power for power in range(15)]
)
BATCH_FAILURES = Counter("openbook_retriever_batch_failures", "Batches that failed, whose calls were searched alone")
_STAGE_SECONDS = Histogram(
    "openbook_retriever_stage_seconds",
    "Time of a call's stages: queue, search and fetch in a shard, shards and merge in a router",
    ["stage"],
    buckets=[0.0001 * 2**power for power in range(17)],
)
QUEUE_SECONDS, SEARCH_SECONDS, FETCH_SECONDS, SHARDS_SECONDS, MERGE_SECONDS = (
    _STAGE_SECONDS.labels(stage) for stage in ("queue", "search", "fetch", "shards", "merge")
)
DEVICE_PASSES = Counter(
    "openbook_retriever_device_passes", "Queries of which the processor did what is beyond the GPU's limits"
)
DEVICE_FALLBACKS = Counter(
    "openbook_retriever_device_fallbacks", "Snapshots and searches that fell back from the GPU to the processor"
)
CACHE_QUERIES = Counter(
    "openbook_retriever_cache_queries",
    "Queries by what the cache knew: hit, miss, error (Redis failed), bypassed (while Redis fails)",
    ["outcome"],
)
CACHE_DAMAGED = Counter(
    "openbook_retriever_cache_damaged", "Values in the cache that were no answer; each is a miss too"
)
CACHE_WRITES = Counter(
    "openbook_retriever_cache_writes",
    "Answers that were to be written: stored, error (Redis failed), dropped (too many wait, or Redis fails)",
    ["outcome"],
)


class ShardState(Collector):
    """What is read only when it is asked for: the calls under way by (database, snapshot), and the process' page faults."""

    def __init__(self, calls: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._calls = calls

    def collect(self) -> Iterable[Metric]:
        users = GaugeMetricFamily(
            "openbook_retriever_snapshot_calls",
            "Calls that use a snapshot now; it is not let go before they end",
            labels=["database", "snapshot"],
        )
        for names, count in self._calls().items():
            users.add_metric(names, count)
        yield users
        yield CounterMetricFamily(
            "openbook_retriever_major_page_faults",
            "Pages of mapped files that had to be read from disk",
            value=resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
        )
