"""Prometheus metrics of the embedder."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class EmbedderMetrics:
    """One set per registry; tests pass a registry of their own."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self.queue_texts = Gauge("openbook_embedder_queue_texts", "Texts that wait for a batch", registry=registry)
        self.queue_tokens = Gauge("openbook_embedder_queue_tokens", "Tokens that wait for a batch", registry=registry)
        self.batch_tokens = Histogram(
            "openbook_embedder_batch_tokens",
            "Tokens of each batch, padding included",
            buckets=[2**power for power in range(4, 18)],
            registry=registry,
        )
        self.padding_share = Histogram(
            "openbook_embedder_padding_share",
            "Share of each batch's tokens that was padding",
            buckets=(0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0),
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "openbook_embedder_stage_seconds",
            "Seconds of each stage: tokenize, cache and queue of a call or message, encode of a batch",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.requests = Counter(
            "openbook_embedder_requests",
            "Calls and stream messages by endpoint and outcome: OK or the error's reason",
            ["endpoint", "outcome"],
            registry=registry,
        )
        self.http_replies = Counter(
            "openbook_embedder_http_replies", "HTTP replies by path and status", ["path", "status"], registry=registry
        )
        self.batch_failures = Counter(
            "openbook_embedder_batch_failures", "Batches in which the encoder failed", registry=registry
        )
        self.worker_restarts = Counter(
            "openbook_embedder_worker_restarts",
            "Times that the encoding thread ended and was replaced",
            registry=registry,
        )
        self.cache_texts = Counter(
            "openbook_embedder_cache_texts",
            "Texts by what the cache knew: hit, miss, error (Redis failed), bypassed (builds, and while Redis fails)",
            ["outcome"],
            registry=registry,
        )
        self.cache_damaged = Counter(
            "openbook_embedder_cache_damaged",
            "Values in the cache that were no vector of this encoder; each is a miss too",
            registry=registry,
        )
        self.cache_writes = Counter(
            "openbook_embedder_cache_writes",
            "Texts whose vectors were to be written: stored, error (Redis failed), dropped (too many wait, or Redis fails)",
            ["outcome"],
            registry=registry,
        )
        self.ready = Gauge("openbook_embedder_ready", "1 while the encoder answers", registry=registry)
