"""The generator's Prometheus metrics, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """One set of metrics per service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "openbook_generator_requests",
            "Requests by endpoint and HTTP status.",
            ["path", "status"],
            registry=self.registry,
        )
        self.prompt_tokens = Counter("openbook_generator_prompt_tokens", "Tokens read.", registry=self.registry)
        self.tokens = Counter("openbook_generator_tokens", "Tokens written.", registry=self.registry)
        self.refused = Counter("openbook_generator_refused", "Requests refused with 429.", registry=self.registry)
        self.cancelled = Counter("openbook_generator_cancelled", "Requests whose client left.", registry=self.registry)
        self.running = Gauge("openbook_generator_running", "Sequences that hold a slot.", registry=self.registry)
        self.queued = Gauge("openbook_generator_queued", "Sequences that wait for a slot.", registry=self.registry)
        self.searches = Counter(
            "openbook_generator_neighbor_searches", "Searches for neighbours of chunks.", registry=self.registry
        )
        self.chunks = Counter(
            "openbook_generator_neighbor_chunks", "Chunks that neighbours were searched for.", registry=self.registry
        )
        self.step_seconds = Histogram(
            "openbook_generator_step_seconds",
            "Seconds of one pass of the model.",
            ["work"],
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )
