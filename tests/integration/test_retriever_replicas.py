"""A replica that hangs, in processes: nobody waits for it while another lives."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from openbook_core.clients import AdminClient, RetrieverClient
from openbook_database.snapshot import Snapshot

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, DIMENSION, build_edition, move


def test_a_replica_that_hangs_holds_no_call_to_its_deadline(tmp_path: Path) -> None:
    path = build_edition(tmp_path, "old")
    queries = np.random.default_rng(1).normal(size=(4, DIMENSION)).astype(np.float32)
    expected = Snapshot.open(path).search(queries, 3).ids_QK
    registry, log = tmp_path / "registry", tmp_path / "log.jsonl"
    processes = [support.start_process(registry, log, "--role", "router")]
    try:
        for _ in range(2):
            processes.append(support.start_process(registry, log, "--role", "shard"))
        router, stopped, _ = processes
        with AdminClient(router.address) as admin, RetrieverClient(router.address) as client:
            move(admin, admin.register(DATABASE, str(path)).snapshot)
            for turn in range(40):
                client.search(DATABASE, queries[turn % 4 :][:1], 3)
            os.kill(stopped.popen.pid, signal.SIGSTOP)
            begun = time.monotonic()
            for turn in range(12):
                result = client.search(DATABASE, queries[turn % 4 :][:1], 3, timeout_s=120)
                assert result.ids[0].tolist() == expected[turn % 4].tolist()
            assert time.monotonic() - begun < 60, "no call waited for the replica that hangs until its deadline"
            os.kill(stopped.popen.pid, signal.SIGCONT)
            assert client.search(DATABASE, queries, 3).ids.tolist() == expected.tolist()
    finally:
        for process in processes:
            process.popen.send_signal(signal.SIGCONT)
            process.stop()
