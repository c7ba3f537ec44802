"""Configuration of a retriever process."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from openbook_core.security.options import DialingServerOptions


class RetrieverConfig(DialingServerOptions):
    """One process, a shard or a router."""

    role: Literal["shard", "router"]
    registry: str = Field(repr=False, description="folder of the registry, or redis://HOST:PORT")
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65_535, description="0: any free port")
    databases: tuple[str, ...] = Field(default=(), description="databases that are served; empty: all in the registry")
    member_index: int = Field(
        default=0, ge=0, description="shard role: serves the shards whose number % members is this"
    )
    member_count: int = Field(default=1, ge=1, le=4096, description="shard role: processes that share the shards")
    embedder: str = Field(default="", description="router role: address of the embedder, for SearchText")
    cache: str | None = Field(
        default=None,
        repr=False,
        description="router role: Redis for ids and scores of queries seen before, redis://HOST:PORT; off by default",
    )
    cache_ttl_s: float = Field(default=86_400.0, gt=0, description="seconds that an answer is kept in the cache")
    name: str = Field(default="", description="name in the registry; empty: role, member, host and port")
    verify: Literal["sizes", "sample", "full"] = Field(default="sample", description="what is checked on load")
    check_memory_mb: float | None = Field(
        default=None,
        gt=0,
        description="shard role: most memory of the process that checks a snapshot before it is loaded",
    )
    check_nice: int = Field(
        default=10, ge=0, le=19, description="shard role: how far that process stands back behind what serves"
    )
    memory_limit_mb: float | None = Field(
        default=None,
        gt=0,
        description="shard role: most MB of mapped files; a snapshot that would take more is not loaded. By default none: "
        "what is mapped is read from disk where memory is short",
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:\d{1,3})?)$",
        description="shard role: cpu, or the GPU (cuda:N) that computes rough scores; it holds a copy of each index",
    )
    device_fallback: bool = Field(
        default=False, description="shard role: what the GPU cannot hold or do is the processor's, instead of an error"
    )
    device_work_mb: float = Field(
        default=256, gt=0, description="shard role: memory of the GPU to work with, for each snapshot, beside its index"
    )
    poll_interval_s: float = Field(default=0.1, gt=0, le=60)
    heartbeat_s: float = Field(default=1.0, gt=0, le=60, description="between two reports to the registry")
    load_retry_s: float = Field(default=5.0, gt=0, description="before a snapshot that failed to load is tried again")
    drain_s: float = Field(
        default=60.0, ge=0, description="shard role: a snapshot that is no longer wanted still answers for so long"
    )
    state_dir: Path | None = Field(
        default=None,
        description="folder for the highest epoch of each database that was seen, so that a restart never goes back",
    )
    metrics_port: int | None = Field(default=None, ge=1, le=65_535, description="Prometheus over HTTP; off by default")
    reflection: bool = Field(default=True, description="tell callers by gRPC's reflection which services there are")
    max_workers: int = Field(
        default=64, ge=1, le=256, description="calls that are worked on or wait for a search at once"
    )
    max_connection_age_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds after which a connection takes no new calls, so that callers spread over new processes; none by "
        "default: a call that is sent as its connection ends fails, and only callers that retry do not notice",
    )
    max_calls: int = Field(
        default=512, ge=1, description="calls that are taken in at once; more are refused with a delay"
    )
    search_threads: int | None = Field(
        default=None, ge=1, description="shard role: threads of a search; by default one per core"
    )
    batch_queries: int = Field(default=512, ge=1, description="shard role: most queries of several calls in one search")
    max_queue_queries: int = Field(
        default=16_384,
        ge=1,
        description="most queries that wait (shard) or are under way (router); more calls are refused",
    )
    snapshot_guard: bool = Field(
        default=True, description="false only in the test that shows what happens without the snapshot in each request"
    )

    @model_validator(mode="after")
    def _member_in_count(self) -> Self:
        if self.member_index >= self.member_count:
            raise ValueError(f"member_index: must be below member_count {self.member_count}, given {self.member_index}")
        return self

    @model_validator(mode="after")
    def _cache_of_a_router(self) -> Self:
        if self.cache is not None and self.role != "router":
            raise ValueError("cache: is the router's; a shard has none")
        if self.cache is not None and not self.snapshot_guard:
            raise ValueError("cache: keeps answers by snapshot, so it needs snapshot_guard")
        return self

    @property
    def bytes_limit(self) -> int:
        """Most bytes of mapped files, 0 for no limit."""
        return int((self.memory_limit_mb or 0) * 1e6)

    @property
    def device_work_bytes(self) -> int:
        """Bytes of the GPU that each snapshot has to work with."""
        return int(self.device_work_mb * 1e6)

    def process_name(self, port: int) -> str:
        """`name`, or one that is unique on this host while the process listens on `port`."""
        if self.name:
            return self.name
        member = f"-{self.member_index}-of-{self.member_count}" if self.role == "shard" else ""
        return f"{self.role}{member}-{socket.gethostname()[:100]}-{port}"
