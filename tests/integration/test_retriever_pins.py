"""Row 11 of the faults: what a run holds is served across three swaps, and goes when the run does; on both registries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openbook_core.clients import AdminClient, RetrieverClient
from openbook_core.errors import PreconditionError, Reason
from openbook_database.registry import open_registry
from openbook_database.snapshot import Snapshot

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, TinyEncoder, move

_RUN = """
import sys, time
from openbook_core.clients import RetrieverClient
client = RetrieverClient(sys.argv[1])
print(client.hold("book", sys.argv[2], ttl_s=2.0).snapshot, flush=True)
time.sleep(60)
"""


def test_a_held_snapshot_answers_across_three_swaps_until_its_holder_is_gone(tmp_path: Path, place: str) -> None:
    editions = [support.build_edition(tmp_path, name) for name in ("a", "b", "c", "d")]
    queries = TinyEncoder().encode(["president of the senate", "railway on the coast"])
    expected = Snapshot.open(editions[0]).search(queries, 5)
    with (
        support.cluster(tmp_path, place, "--drain-s", "0.3") as processes,
        AdminClient(processes[0].address) as admin,
        RetrieverClient(processes[0].address) as client,
    ):
        ids = [admin.register(DATABASE, str(path)).snapshot for path in editions]
        move(admin, ids[0])
        held = client.hold(DATABASE, ttl_s=2.0)
        assert held.snapshot == ids[0]
        command = [sys.executable, "-c", _RUN, processes[0].address, ids[0]]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert run.stdout is not None
            assert run.stdout.readline().strip() == ids[0]
            for snapshot in ids[1:]:
                move(admin, snapshot)

            def loaded() -> list[set[str]]:
                return [{item.snapshot for item in r.snapshots} for r in admin.list(DATABASE)[0].replicas]

            # The second edition, which nobody holds, goes; the first stays, past its lease's first end too.
            support.wait_for(lambda: loaded() == [{ids[0], ids[2], ids[3]}] * 2, "what nobody holds is unloaded")
            registry = open_registry(place)
            first_end = max(lease.expires for lease in registry.leases(DATABASE))
            support.wait_for(
                lambda: min(lease.expires for lease in registry.leases(DATABASE)) > first_end, "leases are renewed"
            )
            pinned = client.search(DATABASE, queries, 5, snapshot=ids[0])
            np.testing.assert_array_equal(pinned.ids, expected.ids_QK)
            with pytest.raises(PreconditionError) as gone:
                client.hold(DATABASE, ids[1])
            assert gone.value.reason is Reason.SNAPSHOT_RETIRED

            # A shard that is killed loads what is held again.
            processes[1].popen.kill()
            processes[1].popen.wait()
            processes[1] = support.start_shard(place, tmp_path / "log.jsonl", 0, "--drain-s", "0.3")
            again = client.search(DATABASE, queries, 5, snapshot=ids[0])
            np.testing.assert_array_equal(again.ids, expected.ids_QK)

            # Given back by one holder, the other's lease keeps it; killed, that one ends by itself.
            held.close()
            assert len(registry.leases(DATABASE)) == 1
            assert client.search(DATABASE, queries, 5, snapshot=ids[0]).snapshot == ids[0]
            os.kill(run.pid, signal.SIGKILL)
            support.wait_for(lambda: registry.leases(DATABASE) == [], "a dead holder's lease ends")
            with pytest.raises(PreconditionError) as retired:
                support.wait_for(lambda: client.search(DATABASE, queries, 5, snapshot=ids[0]) is None, "it is unloaded")
            assert retired.value.reason is Reason.SNAPSHOT_RETIRED
        finally:
            run.kill()
            run.communicate()
