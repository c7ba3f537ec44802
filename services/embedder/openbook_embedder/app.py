"""Wiring and start of the embedder service."""

from __future__ import annotations

import json

import grpc

from openbook_core.errors import ConfigError, UnavailableError
from openbook_core.rpc.server import require_free, start_server
from openbook_core.telemetry import get_logger, serve_metrics, setup_logging
from openbook_embedder.batching import Batcher
from openbook_embedder.config import EmbedderConfig
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.metrics import EmbedderMetrics
from openbook_embedder.service import SERVICE_NAME, EmbedderService
from openbook_proto.v1 import embedder_pb2_grpc

# A waiting call holds a thread; this many callers can share batches.
_MAX_CALLS = 32

_log = get_logger(__name__)


def serve(config: EmbedderConfig) -> None:
    """Load the encoder and serve it until SIGTERM or SIGINT.

    When ready, prints one JSON line on standard output: {"service": "embedder", "address": "HOST:PORT"}.
    Raises ConfigError, NotFoundError or InputError for a setting or model that cannot be served, and the error for
    a port that is in use.
    """
    setup_logging("embedder")
    require_free(config.host, config.port)
    engine = EncoderEngine.load(config.model, dtype=config.dtype, threads=config.threads, options=config)
    if config.batch_tokens < engine.max_tokens:
        raise ConfigError(
            f"batch_tokens: {config.batch_tokens} is less than one text of {engine.max_tokens} tokens, which "
            f"{config.model} reads; give at least {engine.max_tokens}",
            field="batch_tokens",
        )
    metrics = EmbedderMetrics()
    batcher = Batcher(
        engine.encode_batch,
        batch_tokens=config.batch_tokens,
        max_queue_texts=config.max_queue_texts,
        metrics=metrics,
    )
    service = EmbedderService(engine, batcher, config, metrics)

    def register(server: grpc.Server) -> None:
        embedder_pb2_grpc.add_EmbedderServicer_to_server(service, server)

    server = start_server(register, host=config.host, port=config.port, services=[SERVICE_NAME], max_workers=_MAX_CALLS)
    if config.metrics_port is not None:
        try:
            serve_metrics(config.host, config.metrics_port)
        except UnavailableError:
            server.stop(0)
            batcher.close()
            raise
    server.set_ready(True)
    _log.info(f"serving {config.model} in {engine.dtype} on {server.address}")
    print(json.dumps({"service": "embedder", "address": server.address}), flush=True)
    server.wait_for_signal()
    batcher.close()
