"""A process for each GPU and snapshot, on stand-ins for GPUs whose memory the processes share: what happens to one touches no
other, and its memory comes back."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from openbook_cli.status import table
from openbook_cli.swap import plan_lines, swap_to
from openbook_core.clients import AdminClient
from openbook_core.errors import OpenbookError, PreconditionError, Reason, UnavailableError
from openbook_database.registry.records import LoadState
from openbook_database.snapshot import Snapshot
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.holdings import Holdings
from openbook_retriever.metrics import DEVICE_FALLBACKS, DEVICE_PASSES
from openbook_retriever.on_device import OnDevice
from openbook_retriever.placement import Placement

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import fake_gpus
import retriever_support as support
from retriever_support import DATABASE, DIMENSION, Load, TinyEncoder, move

GB = 1 << 30


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("editions")
    return [support.build_edition(folder, name) for name in ("old", "new")]


class Devices:
    """Two devices of `total` bytes, for this process and those that it starts."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self._settings = folder, {}
        folder.mkdir()
        self.set(total=8 * GB, **settings)

    def set(self, **settings: Any) -> None:
        self._settings |= settings
        written = self.folder / "settings.new"
        written.write_text(json.dumps(self._settings))
        written.replace(self.folder / "settings.json")

    def processes(self) -> list[int]:
        """Those that hold memory now."""
        found = [int(file.stem) for file in self.folder.glob("*.pid")]
        return [pid for pid in found if Path(f"/proc/{pid}").exists() and self.taken(pid)]

    def taken(self, pid: int) -> int:
        return sum(json.loads((self.folder / f"{pid}.pid").read_text() or "{}").values())


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Devices]:
    made = Devices(tmp_path / "devices")
    monkeypatch.setenv("FAKE_GPUS", str(made.folder))
    fake_gpus.install(monkeypatch)
    fake_gpus.with_fakes(monkeypatch)
    yield made
    support.wait_for(lambda: not made.processes(), "every process is gone", 30)


def placement(**options: Any) -> Placement:
    return Placement(RetrieverConfig.parse({"role": "shard", "registry": "unused", "device": "cuda:1", **options}))


def place(path: Path, **options: Any) -> tuple[Snapshot, OnDevice]:
    opened = Snapshot.open(path, "sizes")
    process = placement(**options).place(opened)
    assert process is not None
    return opened, process


def queries(number: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(number).normal(size=(number, DIMENSION)).astype(np.float32)


def same(one: Snapshot, other: Snapshot, *asked: Any) -> bool:
    found, expected = (each.search(*asked) for each in (one, other))
    return np.array_equal(found.ids_QK, expected.ids_QK) and np.array_equal(found.scores_QK, expected.scores_QK)


def test_one_process_answers_as_another_does_and_the_end_of_one_frees_its_memory_alone(
    editions: list[Path], devices: Devices
) -> None:
    (old, its), (new, others) = (place(path) for path in editions)
    assert len(devices.processes()) == 2
    plain = [Snapshot.open(path, "sizes") for path in editions]
    half_N = np.arange(plain[0].manifest.documents) % 2 == 0
    before = DEVICE_PASSES._value.get()
    for asked in (
        (queries(), 5),
        (queries(), 5, [{1, 2}, set(), {3}, {0}, {39}, {5}], 0.1),
        (queries(), 5, None, None, [half_N, None, half_N, None, None, half_N]),
    ):
        assert same(old, plain[0], *asked) and same(new, plain[1], *asked)
    few_N = np.arange(len(half_N)) < 1
    assert same(old, plain[0], queries(2), 5, None, None, [few_N] * 2)
    assert DEVICE_PASSES._value.get() >= before
    free = its.memory.total - its.memory.free
    assert its.memory.bytes > 0 and free > its.memory.bytes
    its.end()
    assert len(devices.processes()) == 1
    assert same(new, plain[1], queries(), 5)
    with pytest.raises(UnavailableError, match="searches snapshot .* on cuda:1 was ended by SIGKILL"):
        old.search(queries(), 5)
    others.end()


def test_one_that_crashes_touches_no_other_and_is_loaded_again(editions: list[Path], devices: Devices) -> None:
    holdings, opened = Holdings(), [place(path) for path in editions]
    for snapshot, process in opened:
        holdings.begin(DATABASE, snapshot.id, (0, 1, 2))
        holdings.loaded(DATABASE, snapshot, None, process)
    old, new = (snapshot.id for snapshot, _ in opened)
    taken = holdings.device_memory().bytes
    free = holdings.device_memory().free
    victim = opened[0][1]._process.pid
    os.kill(victim, signal.SIGSEGV)
    with holdings.lease(DATABASE, old) as held, pytest.raises(UnavailableError, match="SIGSEGV"):
        held.search(queries(), 5)
    (why,) = holdings.drop_lost()
    assert "was ended by SIGSEGV" in why
    assert not holdings.drop_lost()
    reports = {report.snapshot: report for report in holdings.report(DATABASE)}
    assert (reports[old].state, reports[old].reason) == (LoadState.FAILED, Reason.UNAVAILABLE)
    assert reports[old].device_bytes == 0 < reports[new].device_bytes
    assert holdings.device_memory().bytes < taken and holdings.device_memory().free > free
    with pytest.raises(PreconditionError, match="SIGSEGV"), holdings.lease(DATABASE, old):
        pass
    with holdings.lease(DATABASE, new) as held:
        assert same(held, Snapshot.open(editions[1], "sizes"), queries(), 5)
    assert holdings.lacks(DATABASE, old, 0.0)
    again, process = place(editions[0])
    holdings.begin(DATABASE, old, (0, 1, 2))
    holdings.loaded(DATABASE, again, None, process)
    with holdings.lease(DATABASE, old) as held:
        assert same(held, Snapshot.open(editions[0], "sizes"), queries(), 5)
    assert set(holdings.keep_only(DATABASE, [], 0.0)) == {old, new}
    assert not devices.processes(), "what was unloaded has given its memory back"


def test_a_device_that_does_not_recover_ends_its_process(editions: list[Path], devices: Devices) -> None:
    opened, process = place(editions[0])
    devices.set(broken="CUDA error 719")
    with pytest.raises(OpenbookError, match="RuntimeError: CUDA error 719"):
        opened.search(queries(), 5)
    support.wait_for(lambda: bool(process.lost), "it has ended")
    assert "ended with exit code 1" in process.lost
    process.end()


@pytest.mark.parametrize("how", [{"broken": "CUDA error 719"}, {"crashes": True}])
def test_with_leave_the_processor_goes_on_and_is_counted(
    editions: list[Path], devices: Devices, how: dict[str, Any]
) -> None:
    opened, process = place(editions[0], device_fallback=True)
    before = DEVICE_FALLBACKS._value.get()
    devices.set(**how)
    for _ in range(2):
        assert same(opened, Snapshot.open(editions[0], "sizes"), queries(), 5)
    assert DEVICE_FALLBACKS._value.get() > before
    assert not process.lost
    process.end()


def test_what_does_not_fit_leaves_nothing_behind(editions: list[Path], devices: Devices) -> None:
    devices.set(total=500 << 20)
    opened = Snapshot.open(editions[0], "sizes")
    with pytest.raises(OpenbookError, match=r"takes .* on cuda:1 \(.* for its index, .* are free") as caught:
        placement().place(opened)
    assert caught.value.reason is Reason.OUT_OF_MEMORY
    before = DEVICE_FALLBACKS._value.get()
    assert placement(device_fallback=True).place(opened) is None
    assert DEVICE_FALLBACKS._value.get() == before + 1
    assert same(opened, Snapshot.open(editions[0], "sizes"), queries(), 5)
    devices.set(total=8 * GB, skewed=True)
    with pytest.raises(OpenbookError, match="does not compute what it should"):
        placement().place(opened)
    devices.set(crashes=True)
    with pytest.raises(UnavailableError, match="SIGABRT"):
        placement().place(opened)


def test_a_swap_on_gpus_is_planned_refused_with_the_numbers_and_done(editions: list[Path], devices: Devices) -> None:
    """One shard process, asked all the while; it is killed in the end, and its children end with it."""
    folder, registry = devices.folder.parent, devices.folder.parent / "registry"
    old, new = (Snapshot.open(path) for path in editions)
    log = folder / "log.jsonl"
    popens = [
        support.spawn(registry, log, "--role", "router"),
        support.spawn(
            registry, log, "--role", "shard", "--device", "cuda:0", "--drain-s", "0",
            program=(fake_gpus.__file__, "openbook_retriever"),
        ),
    ]  # fmt: skip
    try:
        router, _ = (support.ready(popen, log) for popen in popens)
        with AdminClient(router.address) as admin:
            for path in editions:
                admin.register(DATABASE, str(path))
            devices.set(total=GB)
            support.wait_for(lambda: bool(admin.list(DATABASE)[0].replicas), "the shard reports")
            (line,) = plan_lines(admin.plan(DATABASE, old.id))[1:]
            assert "; cuda:0 new 9" in line and line.endswith("free not known: mapped")
            move(admin, old.id)
            (replica,) = admin.list(DATABASE)[0].replicas
            assert replica.device == "cuda:0" and replica.device_total == GB > replica.device_free
            assert replica.snapshots[0].device_bytes >= 256 * 10**6
            shown = table(admin.list())
            assert " on cuda:0: " in shown and " taken, " in shown and " free" in shown
            (line,) = plan_lines(admin.plan(DATABASE, new.id))[1:]
            assert "; cuda:0 new 9" in line and line.endswith(": refused")
            with pytest.raises(PreconditionError, match="would take 9.* on cuda:0, of which .* are free"):
                swap_to(admin, DATABASE, new.id)
            with pytest.raises(UnavailableError, match="for its index, the rest to work with"):
                swap_to(admin, DATABASE, new.id, force=True)
            support.wait_for(lambda: len(admin.list(DATABASE)[0].replicas[0].snapshots) == 1, "it is forgotten")
            devices.set(total=8 * GB)
            load = Load(
                router.address, TinyEncoder().encode(["president of the senate", "railway on the coast"]), threads=1
            )
            with load.running():
                swap_to(admin, DATABASE, new.id, force=True)
                assert len(devices.processes()) == 2
                admin.retire(DATABASE)
                support.wait_for(lambda: len(devices.processes()) == 1, "the old one's process is gone")
            assert not load.failures
            assert not load.mixed({snapshot.id: snapshot for snapshot in (old, new)})
            assert {result.snapshot for replies in load.replies for _, result in replies} == {old.id, new.id}
        assert devices.processes()
        popens[1].kill()
        support.wait_for(lambda: not devices.processes(), "it ends with its parent", 60)
    finally:
        for popen in popens:
            popen.kill()
            popen.wait()
