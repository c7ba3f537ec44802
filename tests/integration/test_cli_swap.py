"""`openbook db register|swap|rollback|abort|list` against a real router and shards, a corrupt snapshot among them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from openbook_cli.swap import swap_to
from openbook_core.clients import AdminClient
from openbook_core.errors import CorruptError, NotFoundError, OpenbookError
from openbook_core.health import why_unhealthy
from openbook_database.registry.directory import DirectoryRegistry

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE


def openbook(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openbook_cli", "db", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def done(*arguments: str) -> str:
    process = openbook(*arguments)
    assert process.returncode == 0, process.stderr
    return process.stdout


def state(router: str) -> Any:
    return json.loads(done("list", "--router", router))[0]


def test_a_swap_a_corrupt_candidate_and_a_rollback(tmp_path: Path) -> None:
    old, new, broken = (support.build_edition(tmp_path, name) for name in ("old", "new", "broken"))
    damaged = broken / "shard-00001" / "tokens.bin"
    data = bytearray(damaged.read_bytes())
    data[7] ^= 1
    damaged.write_bytes(data)
    with support.cluster(tmp_path, tmp_path / "registry") as processes:
        router = processes[0].address
        ids = {
            name: done("register", DATABASE, str(path), "--router", router).strip()
            for name, path in (("old", old), ("new", new), ("broken", broken))
        }
        assert json.loads(done("swap", DATABASE, ids["old"], "--router", router))["epoch"] == 1
        refused = openbook("swap", DATABASE, ids["broken"], "--router", router)
        assert refused.returncode == 1
        assert "tokens.bin" in refused.stderr
        assert refused.stderr.strip().splitlines()[0].endswith(": fits")
        assert len([line for line in refused.stderr.splitlines() if line.startswith("error: ")]) == 1
        assert state(router)["live"] == ids["old"]
        assert "candidate" not in state(router)
        swapped = json.loads(done("swap", DATABASE, ids["new"][:12], "--router", router))
        assert (swapped["live"], swapped["epoch"]) == (ids["new"], 2)
        assert json.loads(done("rollback", DATABASE, "--router", router))["live"] == ids["old"]
        assert json.loads(done("abort", DATABASE, "--router", router))["live"] == ids["old"]
        shown = done("status", "--router", router)
        for expected in ("book   epoch 3", ids["old"][:12], ids["new"][:12], "previous", "ready", "kB", "shard-0-of-2"):
            assert expected in shown
        (as_json,) = json.loads(done("status", DATABASE, "--json", "--router", router))
        assert all(int(held["bytes"]) > 0 for replica in as_json["replicas"] for held in replica["snapshots"])
        watching = subprocess.Popen(
            [sys.executable, "-m", "openbook_cli", "db", "watch", "--seconds", "400", "--router", router],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout is not None
        assert "live: " in watching.stdout.readline()
        assert json.loads(done("retire", DATABASE, "--router", router, "--json")).get("previous") is None
        assert any("previous: -" in line for line in watching.stdout)
        watching.kill()
        watching.communicate()
        wrong = openbook("swap", DATABASE, "0" * 64, "--router", router)
        assert wrong.returncode == 1
        assert "0" * 12 in wrong.stderr


def test_a_swap_that_was_ended_by_somebody_else_leaves_the_next_one_alone(tmp_path: Path) -> None:
    old, new = (support.build_edition(tmp_path, name) for name in ("old", "new"))
    registry = DirectoryRegistry(tmp_path / "registry")
    old_id, new_id = (registry.register(DATABASE, path).snapshot for path in (old, new))
    with support.start_router_alone(tmp_path, tmp_path / "registry") as router, AdminClient(router) as admin:
        errors: list[OpenbookError] = []

        def swap() -> None:
            try:
                swap_to(admin, DATABASE, old_id, deadline_s=60)
            except OpenbookError as error:
                errors.append(error)

        thread = threading.Thread(target=swap)
        thread.start()
        support.wait_for(lambda: registry.control(DATABASE).candidate == old_id, "the swap begins")
        time.sleep(0.5)
        registry.abort(DATABASE)
        registry.prepare(DATABASE, new_id)
        thread.join(20)
        assert "somebody else" in errors[0].message
        assert registry.control(DATABASE).candidate == new_id
        tried = [entry.outcome for entry in registry.audit(DATABASE) if entry.verb == "activate"]
        assert len(tried) <= 2, "asked and refused once: nothing is tried before the replicas are ready"


def health_of(process: support.Process) -> str:
    return f"grpc://{process.address}/openbook_proto.v1.Retriever/{DATABASE}"


def test_a_router_that_reads_the_manifest_alone_swaps_by_force_and_health_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is another one for each process: where it was started."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    path = support.build_edition(here, "book")
    registry, log = DirectoryRegistry(tmp_path / "registry"), tmp_path / "log.jsonl"
    monkeypatch.chdir(here)
    snapshot = registry.register(DATABASE, f"/proc/self/cwd/{path.name}").snapshot
    popens = [support.spawn(tmp_path / "registry", log, "--role", "shard")]
    monkeypatch.chdir(elsewhere)
    popens.append(support.spawn(tmp_path / "registry", log, "--role", "router"))
    try:
        shard, router = (support.ready(popen, log) for popen in popens)
        assert why_unhealthy(health_of(router)) and why_unhealthy(health_of(shard))
        with AdminClient(router.address) as admin:
            for force in (False, True):
                with pytest.raises(NotFoundError, match="holds no snapshot: manifest.json cannot be read"):
                    admin.prepare(DATABASE, snapshot, force=force)
            with pytest.raises(NotFoundError, match="mount the folder there"):
                admin.plan(DATABASE, snapshot)
            (elsewhere / path.name).mkdir()
            shutil.copy(path / "manifest.json", elsewhere / path.name)
            with pytest.raises(
                CorruptError, match=f"no plan of memory for snapshot {snapshot[:12]}: .* or swap by force"
            ):
                admin.prepare(DATABASE, snapshot)
        swapped = openbook("swap", DATABASE, snapshot, "--force", "--router", router.address)
        assert swapped.returncode == 0, swapped.stderr
        assert "no plan of memory" in swapped.stderr
        assert json.loads(swapped.stdout)["live"] == snapshot
        support.wait_for(lambda: not why_unhealthy(health_of(shard)), "the shard has it ready")
        support.wait_for(lambda: not why_unhealthy(health_of(router)), "the router knows")
        shard.stop()
        support.wait_for(lambda: "NOT_SERVING" in why_unhealthy(health_of(router)), "no shard is there any more")
        assert not why_unhealthy(f"grpc://{router.address}")
    finally:
        for popen in popens:
            support.Process(popen, "").stop()
