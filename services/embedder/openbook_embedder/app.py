"""Wiring and start of the embedder service."""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import TYPE_CHECKING

import grpc

from openbook_core.errors import UnavailableError
from openbook_core.rpc.server import RunningServer, require_free, start_server
from openbook_core.security.options import Protection
from openbook_core.telemetry import get_logger, serve_metrics, setup_logging
from openbook_core.tracing import setup_traces
from openbook_embedder.batching import Batcher
from openbook_embedder.cache import VectorCache, open_cache
from openbook_embedder.config import EmbedderConfig
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.intake import Intake
from openbook_embedder.memory import share_arenas
from openbook_embedder.metrics import EmbedderMetrics
from openbook_embedder.service import SERVICE_NAME, EmbedderService
from openbook_proto.v1 import embedder_pb2_grpc

if TYPE_CHECKING:
    from openbook_embedder.http import HttpServer

# Beside one for each call, so that health checks and refusals find a thread while all calls are taken.
_SPARE_THREADS = 8

_log = get_logger(__name__)


def serve(config: EmbedderConfig) -> None:
    """Load the encoder and serve it until SIGTERM or SIGINT.

    When ready, prints one JSON line on standard output: {"service": "embedder", "address": "HOST:PORT"},
    with "http" where it is served too.
    Raises ConfigError, NotFoundError or InputError for a setting or model that cannot be served, and the error for
    a port that is in use.
    """
    share_arenas()
    setup_logging("embedder")
    setup_traces("embedder", config.traces_endpoint)
    protection = config.protection(config.host)
    require_free(config.host, config.port)
    engine = EncoderEngine.load(
        config.model,
        dtype=config.dtype,
        backend=config.backend,
        device=config.device,
        compile=config.compile,
        threads=config.threads,
        options=config,
    )
    config = config.with_batch_tokens(engine.batch_tokens, engine.max_tokens)
    assert config.batch_tokens is not None
    metrics = EmbedderMetrics()
    cache = open_cache(config, engine, metrics)
    readiness = _Readiness()
    batcher = Batcher(
        engine.encode_batch,
        batch_tokens=config.batch_tokens,
        enough_tokens=engine.enough_tokens,
        cores=engine.cores,
        max_queue_tokens=config.max_queue_tokens,
        metrics=metrics,
        encode_alone=engine.encode_ids,
        probe=engine.tokenize(engine.probe_texts[:1]).ids[0],
        on_ready=readiness.change,
        timeout_s=config.encoder_timeout_s,
        restart_s=config.restart_after_s,
        on_dead=None if engine.device == "cpu" else _end_process,
    )
    intake = Intake(engine, batcher, config, metrics, cache)

    def register(server: grpc.Server) -> None:
        embedder_pb2_grpc.add_EmbedderServicer_to_server(EmbedderService(intake), server)

    workers = config.max_calls + _SPARE_THREADS
    server = start_server(
        register,
        host=config.host,
        port=config.port,
        services=[SERVICE_NAME],
        max_workers=workers,
        protection=protection,
        reflects=config.reflection,
    )
    addresses = {"address": server.address}
    http: HttpServer | None = None
    try:
        if config.metrics_port is not None:
            serve_metrics(config.host, config.metrics_port)
        if config.http_port is not None:
            http = _serve_http(intake, config.host, config.http_port, protection)
            addresses["http"] = http.address
    except UnavailableError:
        server.stop(0)
        _close(batcher, cache)
        raise
    readiness.follow(server)
    _log.info(f"serving {config.model} in {engine.dtype} on {', '.join(addresses.values())}")
    print(json.dumps({"service": "embedder", **addresses}), flush=True)
    server.wait_for_signal(before_stop=http.close if http is not None else lambda: None)
    _close(batcher, cache)


def _end_process(reason: str) -> None:
    """Exit code 1 at once: after an error a CUDA context stays dead, and what waits for it never returns.

    Whoever started the process starts it again.
    """
    _log.critical(f"the encoder {reason}; this process ends, a new one can use the device again")
    logging.shutdown()
    os._exit(1)


def _close(batcher: Batcher, cache: VectorCache | None) -> None:
    batcher.close()
    if cache is not None:
        cache.close()


def _serve_http(intake: Intake, host: str, port: int, protection: Protection) -> HttpServer:
    from openbook_core.http import listen
    from openbook_embedder.http import HttpServer, create_app

    return HttpServer(create_app(intake, protection.tokens), listen(host, port, "http_port"), protection)


class _Readiness:
    """Carries the batcher's state to the health service, which starts after it."""

    def __init__(self) -> None:
        self._ready = True
        self._server: RunningServer | None = None
        self._lock = threading.Lock()

    def change(self, ready: bool) -> None:
        with self._lock:
            self._ready = ready
            if self._server is not None:
                self._server.set_ready(ready)

    def follow(self, server: RunningServer) -> None:
        """Tell `server` the state, now and at every change."""
        with self._lock:
            self._server = server
            server.set_ready(self._ready)
