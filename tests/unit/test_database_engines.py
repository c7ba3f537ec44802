"""Engines: the same bytes from one process, several, and a Ray cluster; what happens when one of them is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from openbook_core.errors import ConfigError, InputError, OpenbookError
from openbook_database.build import engine as engine_module
from openbook_database.build.engine import LocalEngine
from openbook_database.build.progress import Update
from openbook_database.build.ray_engine import RayEngine
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.testing import HashEncoder, tiny_rows, tiny_tokenizer, tree, write_rows
from openbook_database.verify import verify

SETTINGS = BuildSettings(chunk_length=16, shards=3, embed_block=32, chunk_block=32, index="IVF4,SQ8")


def build(source: Path, out: Path, engine: Any = None, **changes: Any) -> Any:
    arguments: dict[str, Any] = {"database": "tiny", "tokenizer": tiny_tokenizer(), "encoder": HashEncoder()} | changes
    return build_snapshot([source], out, settings=SETTINGS, engine=engine, **arguments)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("source") / "input.jsonl", tiny_rows(40, seed=2))


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "snapshot"
    build(source, out)
    return tree(out)


def test_several_processes_give_the_same_bytes(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    updates: list[Update] = []
    build(source, tmp_path / "snapshot", LocalEngine(2), progress=updates.append)
    assert tree(tmp_path / "snapshot") == expected
    added = [update.done for update in updates if update.stage == "add"]
    assert len(added) >= 4 and added[0] == 0 and added[-1] == updates[-1].total and added == sorted(added)


@dataclass(frozen=True)
class Doing:
    """An `engine.Job`: notes its process and what it did in `folder`, and does `what` at item 2."""

    folder: Path
    what: str = ""

    def __call__(self) -> Callable[[int, Callable[[int], None]], None]:
        (self.folder / f"{os.getpid()}.pid").touch()

        def do(item: int, tell: Callable[[int], None]) -> None:
            tell(7)
            if item == 2 and self.what == "raise":
                raise ValueError("no such thing")
            if item == 2 and self.what == "refuse":
                raise InputError("the disk is full", field="out")
            if item == 2 and self.what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "wait":
                time.sleep(60)
            (self.folder / str(item)).touch()

        return do


def processes(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.pid")]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run_all(engine: Any, job: Doing, items: Sequence[int] = range(5)) -> list[int]:
    return sorted(engine.map(job, items, name="shard", item_bytes=1))


ENDINGS = [
    ("raise", OpenbookError, r"^shard 2: ValueError: no such thing$"),
    ("refuse", InputError, r"^the disk is full$"),
]


@pytest.mark.parametrize(("what", "kind", "message"), ENDINGS)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_that_fails_is_named(
    tmp_path: Path, workers: int, what: str, kind: type[OpenbookError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        run_all(LocalEngine(workers), Doing(tmp_path, what))
    assert caught.value.field == ("out" if what == "refuse" else None)
    assert not [process for process in processes(tmp_path) if process != os.getpid() and alive(process)]
    assert run_all(LocalEngine(workers), Doing(tmp_path)) == [0, 1, 2, 3, 4]


def test_a_worker_that_is_killed_is_an_error_and_leaves_none_behind(tmp_path: Path) -> None:
    with pytest.raises(
        OpenbookError, match=r"^shard 2: its process ended with exit code -9 .*goes on where it stopped"
    ):
        run_all(LocalEngine(2), Doing(tmp_path, "die"))
    assert processes(tmp_path) and not any(map(alive, processes(tmp_path)))
    assert not active_children()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_build_that_is_ended(tmp_path: Path, how: signal.Signals) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from openbook_database.build.engine import LocalEngine\n"
        "from test_database_engines import Doing\n"
        "if __name__ == '__main__':\n"
        "    list(LocalEngine(2).map(Doing(Path(sys.argv[1]), 'wait'), range(5), name='shard', item_bytes=1))\n"
    )
    (tmp_path / "program.py").write_text(program)
    arguments = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), str(Path(__file__).parent)]
    # A session of its own, so that the signal goes to the group as a terminal sends it.
    with subprocess.Popen(arguments, start_new_session=True, stderr=subprocess.PIPE) as running:
        wait_until(lambda: len(processes(tmp_path)) == 2)
        if how == signal.SIGINT:
            os.killpg(running.pid, how)
        else:
            running.kill()
        assert running.wait(30) == -how
        wait_until(lambda: not any(map(alive, processes(tmp_path))))
        assert running.stderr is not None
        errors = running.stderr.read().decode()
    assert errors.count("Traceback") == (how == signal.SIGINT)


def test_processes_are_started_where_work_and_memory_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    useful = engine_module._useful_workers
    monkeypatch.setattr(engine_module, "_cores", lambda: 8)
    monkeypatch.setattr(engine_module, "_free_bytes", lambda: 10 << 30)
    assert useful(100, 1 << 20) == 1
    assert useful(100, 1 << 26) == 8
    assert useful(100, 1 << 30) == 5
    assert useful(100, 1 << 40) == 1


class Elsewhere(HashEncoder):
    """Says that it computes on another processor."""

    def __init__(self) -> None:
        super().__init__()
        self.arithmetic = {"cpu": "AVX512", "threads": 2}


def test_a_build_goes_on_with_the_arithmetic_that_it_was_begun_with(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    def interrupt(update: Update) -> None:
        if update.stage == "embed" and update.done > 64:
            raise KeyboardInterrupt

    out = tmp_path / "snapshot"
    with pytest.raises(KeyboardInterrupt):
        build(source, out, encoder=Elsewhere(), progress=interrupt)
    with pytest.raises(
        ConfigError, match=r'arithmetic: cpu: was "AVX512", now null; threads: was 2, now null\. Please go on'
    ):
        build(source, out)
    build(source, out, encoder=Elsewhere())
    assert tree(out) == expected  # of which it is no part


class OneBroken(HashEncoder):
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors_ND = super().encode(texts)
        if any("Page 7" in text for text in texts):
            vectors_ND[0, 0] = np.nan
        return vectors_ND


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster on two cores of this machine; its address."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def test_a_ray_cluster_gives_the_same_bytes(
    cluster: str, source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "snapshot"
    engine = RayEngine(OneBroken, address=cluster)
    with pytest.raises(InputError, match=r"not finite for 1 of chunks \d+ to \d+, first for the passage"):
        build(source, out, engine)
    with pytest.raises(ConfigError, match=r'a process of the engine computes otherwise: cpu: was null, now "AVX512"'):
        build(source, out, RayEngine(Elsewhere, address=cluster))
    with pytest.raises(OpenbookError, match=r"^shard 2: ValueError: no such thing$"):
        run_all(engine, Doing(tmp_path, "raise"))
    updates: list[Update] = []
    assert build(source, out, RayEngine(HashEncoder, address=cluster), progress=updates.append).resumed
    assert tree(out) == expected
    assert updates[-1].done == updates[-1].total
    events = [json.loads(line) for line in (tmp_path / "snapshot.log.jsonl").read_text().splitlines()]
    embedded = [event for event in events if event.get("stage") == "embed" and event["event"] == "end"]
    assert embedded[0]["done"] == updates[-1].total
    # From a base, too: what is new is encoded there, and changed shards are written there.
    rows = tiny_rows(40, seed=2)
    changed = write_rows(tmp_path / "changed.jsonl", [*rows[1:], {**rows[0], "text": "Other words."}])
    for name, other in (("ray", RayEngine(HashEncoder, address=cluster)), ("local", LocalEngine(1))):
        made = build(changed, tmp_path / name / "snapshot", other, base=out)
        assert (made.shared["documents"], made.shared["shards"]) == (39, 2)
    assert tree(tmp_path / "ray" / "snapshot") == tree(tmp_path / "local" / "snapshot")


def test_the_command_builds_on_a_cluster(cluster: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "input.jsonl", [{"id": "a", "text": "One short text."}, {"id": "b", "text": "Two"}])
    command = [sys.executable, "-m", "openbook_cli", "db", "build", "--name", "small", "--input", str(source)]
    command += ["--dtype", "float32", "--shards", "2", "--engine", "ray", "--ray-address", cluster]
    done = subprocess.run([*command, "--out", str(tmp_path / "book")], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    verify(tmp_path / "book")


def test_ray_needs_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="ray_address: name the cluster, or set RAY_ADDRESS"):
        RayEngine(HashEncoder)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'openbook-database\[ray\]'"):
        RayEngine(HashEncoder, address="local")
