"""What Prometheus reads of a shard and of a router, and that the guide names all of it."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import numpy as np
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from openbook_core.clients import AdminClient, RetrieverClient
from openbook_database.registry.local_redis import free_port
from openbook_retriever.metrics import ShardState

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, TinyEncoder, move

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "retriever.md"
Samples = dict[tuple[str, ...], float]


def read(port: int) -> Samples:
    """The values by name and labels' values."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    return {(sample.name, *sample.labels.values()): sample.value for each in families for sample in each.samples}


def test_a_shard_and_a_router_tell_how_long_each_stage_took(tmp_path: Path) -> None:
    edition = support.build_edition(tmp_path, "old")
    ports = {"shard": free_port(), "router": free_port()}
    registry, log = tmp_path / "registry", tmp_path / "log.jsonl"
    processes = {
        role: support.start_process(registry, log, "--role", role, "--metrics-port", str(port))
        for role, port in ports.items()
    }
    try:
        with (
            AdminClient(processes["router"].address) as admin,
            RetrieverClient(processes["router"].address) as client,
        ):
            snapshot = admin.register(DATABASE, str(edition)).snapshot
            move(admin, snapshot)
            for _ in range(3):
                client.search(DATABASE, TinyEncoder().encode(["river", "coast"]), 2, tokens=True)
            client.get_chunks(DATABASE, snapshot, np.arange(3), tokens=True)
        shard, router = read(ports["shard"]), read(ports["router"])
    finally:
        for process in processes.values():
            process.stop()
    count, total = "openbook_retriever_stage_seconds_count", "openbook_retriever_stage_seconds_sum"
    stages = {"queue": (3, 0), "search": (3, 0), "fetch": (4, 0), "shards": (0, 3), "merge": (0, 3)}
    for stage, expected in stages.items():
        assert (shard[count, stage], router[count, stage]) == expected, stage
    assert 0 < shard[total, "search"] < router[total, "shards"] < 60
    assert shard["openbook_retriever_snapshot_calls", DATABASE, snapshot] == 0
    assert shard["openbook_retriever_major_page_faults_total",] >= 0
    assert shard["openbook_rpc_seconds_count", "OK", "Search"] == 3
    assert router["openbook_snapshot_mix_total",] == 0


def test_the_guide_names_every_metric() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    families = [*REGISTRY.collect(), *ShardState(dict).collect()]
    names = [family.name + ("_total" if family.type == "counter" else "") for family in families]
    ours = [name for name in names if name.startswith(("openbook_retriever", "openbook_snapshot", "openbook_rpc"))]
    assert len(ours) > 20
    assert [name for name in ours if f"`{name}`" not in guide] == []
