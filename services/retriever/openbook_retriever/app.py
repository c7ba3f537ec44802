"""Wires a retriever process together and runs it until a signal."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import grpc
from prometheus_client import REGISTRY

from openbook_core.rpc.server import RunningServer, start_server
from openbook_core.security.options import Protection
from openbook_core.telemetry import serve_metrics, setup_logging
from openbook_core.tracing import setup_traces
from openbook_database.registry import open_registry
from openbook_database.registry.base import Registry
from openbook_proto.v1 import admin_pb2_grpc, retriever_pb2_grpc
from openbook_retriever.admin_engine import AdminEngine
from openbook_retriever.admin_service import AdminService
from openbook_retriever.attach import EmbedderGate
from openbook_retriever.batching import SearchBatcher
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.holdings import Holdings
from openbook_retriever.metrics import ShardState
from openbook_retriever.replicas import Replicas
from openbook_retriever.result_cache import ResultCache
from openbook_retriever.router_engine import RouterEngine
from openbook_retriever.router_service import RouterService
from openbook_retriever.router_watch import RouterWatch
from openbook_retriever.shard_engine import ShardEngine
from openbook_retriever.shard_service import ShardService
from openbook_retriever.shard_watch import ShardWatch

RETRIEVER = "openbook_proto.v1.Retriever"
ADMIN = "openbook_proto.v1.DatabaseAdmin"


def health_of(database: str) -> str:
    """The name of a database in the health service: a shard answers from its live snapshot, a router from all shards of it."""
    return f"{RETRIEVER}/{database}"


def serve(config: RetrieverConfig) -> None:
    """Serve until SIGTERM or Ctrl-C. Once ready, print one JSON line with service, role and address on stdout.

    A shard is ready when what the registry wants of it was loaded or failed to load; a router after its first look at
    the registry. Raises UnavailableError with reason PORT_IN_USE where the port is taken.
    """
    setup_logging(f"retriever-{config.role}")
    setup_traces(config.role, config.traces_endpoint)
    protection = config.protection(config.host)
    registry = open_registry(config.registry)
    if config.metrics_port is not None:
        serve_metrics(config.host, config.metrics_port)
    if config.role == "shard":
        _serve_shard(config, registry, protection)
    else:
        _serve_router(config, registry, protection)


def _serve_shard(config: RetrieverConfig, registry: Registry, protection: Protection) -> None:
    holdings = Holdings()
    REGISTRY.register(ShardState(holdings.calls))
    watch = ShardWatch(config, registry, holdings)
    batcher = SearchBatcher(
        threads=config.search_threads or len(os.sched_getaffinity(0)),
        batch_queries=config.batch_queries,
        max_queue_queries=config.max_queue_queries,
    )
    service = ShardService(ShardEngine(holdings, batcher, snapshot_guard=config.snapshot_guard))

    def register(server: grpc.Server) -> None:
        retriever_pb2_grpc.add_RetrieverServicer_to_server(service, server)

    running = _start(config, register, [RETRIEVER], protection)
    watch.start(
        _name(config, running), running.address, lambda database, ready: running.set_part(health_of(database), ready)
    )
    try:
        watch.wait_settled()
        _run(config, running, watch.stop)
    finally:
        watch.stop()
        batcher.close()


def _serve_router(config: RetrieverConfig, registry: Registry, protection: Protection) -> None:
    watch = RouterWatch(config, registry)
    dial = config.dial()
    gate = EmbedderGate(config.embedder, dial) if config.embedder else None
    cache = ResultCache(config.cache, ttl_s=config.cache_ttl_s) if config.cache else None
    replicas = Replicas(dial)
    engine = RouterEngine(
        watch, replicas, gate, cache, snapshot_guard=config.snapshot_guard, max_queries=config.max_queue_queries
    )
    service = RouterService(engine, watch)
    admin = AdminService(AdminEngine(registry, watch))

    def register(server: grpc.Server) -> None:
        retriever_pb2_grpc.add_RetrieverServicer_to_server(service, server)
        admin_pb2_grpc.add_DatabaseAdminServicer_to_server(admin, server)

    running = _start(config, register, [RETRIEVER, ADMIN], protection)
    watch.start(
        _name(config, running), running.address, lambda database, ready: running.set_part(health_of(database), ready)
    )
    try:
        _run(config, running, watch.stop)
    finally:
        watch.stop()
        replicas.close()
        if gate is not None:
            gate.close()
        if cache is not None:
            cache.close()


def _start(
    config: RetrieverConfig, register: Callable[[grpc.Server], None], services: list[str], protection: Protection
) -> RunningServer:
    return start_server(
        register,
        host=config.host,
        port=config.port,
        services=services,
        max_workers=config.max_workers,
        max_calls=config.max_calls,
        max_connection_age_s=config.max_connection_age_s,
        protection=protection,
        reflects=config.reflection,
    )


def _run(config: RetrieverConfig, running: RunningServer, withdraw: Callable[[], None]) -> None:
    """Serve until a signal. The report goes first, and the server a poll later, when routers ask others."""

    def leave() -> None:
        running.set_ready(False)
        withdraw()
        time.sleep(min(config.poll_interval_s, 1.0))

    running.set_ready(True)
    print(json.dumps({"service": "retriever", "role": config.role, "address": running.address}), flush=True)
    running.wait_for_signal(before_stop=leave)


def _name(config: RetrieverConfig, running: RunningServer) -> str:
    return config.process_name(int(running.address.rpartition(":")[2]))
