"""Prometheus metrics of the embedder."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram


class EmbedderMetrics:
    """One set per registry; tests pass a registry of their own."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.queue_texts = Gauge("openbook_embedder_queue_texts", "Texts that wait for a batch", registry=registry)
        self.batch_tokens = Histogram(
            "openbook_embedder_batch_tokens",
            "Tokens of each batch, padding included",
            buckets=[2**power for power in range(4, 18)],
            registry=registry,
        )
        self.padding_tokens = Counter(
            "openbook_embedder_padding_tokens", "Tokens of batches that were padding", registry=registry
        )
        self.requests = Counter(
            "openbook_embedder_requests",
            "Embed calls by outcome: OK or the error's reason",
            ["outcome"],
            registry=registry,
        )
        self.batch_failures = Counter(
            "openbook_embedder_batch_failures", "Batches in which the encoder failed", registry=registry
        )
