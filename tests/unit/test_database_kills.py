"""Builds that are killed, or that the system refuses to let write, at a named file of every stage: run again, they end in
the same bytes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openbook_core.errors import InputError, OpenbookError
from openbook_database import files
from openbook_database.build.engine import Job, LocalEngine, Tell
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.manifest import Manifest
from openbook_database.testing import HashEncoder, tiny_rows, tiny_tokenizer, tree, write_rows
from openbook_database.verify import verify

SETTINGS = BuildSettings(chunk_length=16, shards=2, embed_block=64, chunk_block=64, index="IVF8,SQ8")

# By stage, what it writes: each file is there whole or not at all.
FILES = {
    "begin": ["s.building/arithmetic.json", "s.building/recipe.json"],
    "chunk": ["documents/00000000.arrow", "chunks/00000000.arrow", "documents/00000003.arrow", "chunks/00000004.arrow"],
    "embed": ["s.building/documents.order", "vectors/00000000.f32", "vectors/00000002.f32", "vectors/00000004.f32"],
    "train-index": ["snapshot/quantiser.faiss"],
    "add": [
        f"shard-0000{shard}/{name}"
        for shard in (0, 1)
        for name in ("tokens.bin", "lengths.bin", "documents.bin", "lists.faiss", "places.bin", "vectors.f16")
    ],
    "finish": [
        "snapshot/list_sizes.bin",
        "snapshot/documents.arrow",
        "tokenizer/tokenizer.json",
        "snapshot/manifest.json",
    ],
    "publish": ["/s"],
    "discard": ["recipe.json"],
}
# When a file is half written; whole, but under its temporary name; just renamed.
MOMENTS = dict.fromkeys(FILES, ("half", "whole", "renamed")) | {
    "publish": ("whole", "renamed"),
    "discard": ("removed",),
}
POINTS = [(stage, file, moment) for stage, names in FILES.items() for file in names for moment in MOMENTS[stage]]

# Forks a process for each build that it is asked for, which kills itself where it is told to. Answers with the process
# id, then with the exit code (3: InputError).
BUILDER = """
import json, os, resource, signal, sys, traceback
from pathlib import Path
from openbook_core.errors import InputError
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.testing import HashEncoder, tiny_tokenizer

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def build(source, out, settings, file, moment, limit, base):
    replace, write_text, unlink, link = os.replace, Path.write_text, os.unlink, os.link

    def dying_replace(source, target):
        here = file and moment != "removed" and str(target).endswith(file)
        if here and moment == "half":
            os.truncate(source, os.path.getsize(source) // 2)
        if here and moment != "renamed":
            die()
        replace(source, target)
        if here:
            die()

    def dying_write_text(path, text, **named):
        named_here = file and str(path).endswith(file)
        if named_here and moment == "half":
            text = text[:len(text) // 2]
        write_text(path, text, **named)
        if named_here:
            die()

    def dying_unlink(path, **named):
        unlink(path, **named)
        if moment == "removed" and str(path).endswith(file):
            die()

    def dying_link(source, target):
        link(source, target)
        if moment == "linked" and str(target).endswith(file):
            die()

    os.replace, Path.write_text, os.unlink, os.link = dying_replace, dying_write_text, dying_unlink, dying_link
    os.fsync = lambda descriptor: None  # the system stays up
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    build_snapshot([source], out, database="tiny", tokenizer=tiny_tokenizer(), encoder=HashEncoder(),
                   settings=BuildSettings.model_validate_json(settings), base=base)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            build(**json.loads(line))
        except InputError:
            os._exit(3)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def build(source: Path, out: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "encoder": HashEncoder()} | changes
    return build_snapshot([source], out, database="tiny", settings=SETTINGS, **arguments)


class Builder:
    """Builds in processes of their own, one after the other."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BUILDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(
        self, source: Path, out: Path, file: str = "", moment: str = "", limit: int = 0, base: Path | None = None
    ) -> int:
        """The process id of a build that has begun."""
        job = {"source": str(source), "out": str(out), "settings": SETTINGS.model_dump_json()}
        job |= {"base": base and str(base)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**job, "file": file, "moment": moment, "limit": limit}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def exit_code(self) -> int:
        """Waits for the build's end."""
        return self._answer()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(autouse=True)
def without_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system stays up, and flushing takes most of a tiny build's time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    made = Builder()
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(timeout=30)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("source") / "input.jsonl", tiny_rows(16, seed=2))


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "s"
    build(source, out)
    verify(out)
    return tree(out)


@pytest.mark.parametrize(("stage", "file", "moment"), POINTS)
def test_a_killed_build_goes_on_to_the_same_bytes(
    source: Path, expected: dict[str, bytes], builder: Builder, tmp_path: Path, stage: str, file: str, moment: str
) -> None:
    out = tmp_path / "s"
    builder.start(source, out, file, moment)
    assert builder.exit_code() == -signal.SIGKILL
    done = stage == "discard" or (stage, moment) == ("publish", "renamed")
    assert tree(out) == expected if done else not out.exists()
    build(source, out)
    assert tree(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.log.jsonl"]


# Of a build with a base whose first shard has other documents: what it writes, and what it shares.
WITH_BASE = {
    "chunk": ["documents/00000000.arrow", "chunks/00000002.arrow"],
    "embed": ["s.building/documents.order", "s.building/encoded.order", "vectors/00000000.f32"],
    "add": [f"shard-00000/{name}" for name in ("tokens.bin", "lengths.bin", "documents.bin", "lists.faiss")],
    "finish": ["snapshot/documents.arrow", "snapshot/manifest.json"],
}
BASE_POINTS = [(file, moment) for names in WITH_BASE.values() for file in names for moment in ("half", "renamed")] + [
    (f"shard-00001/{name}", "linked")
    for name in ("tokens.bin", "lengths.bin", "documents.bin", "lists.faiss", "vectors.f16")
]


@pytest.fixture(scope="module")
def incremental(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, bytes]]:
    """A base, a source that differs in documents of its first shard, and what comes of both."""
    folder = tmp_path_factory.mktemp("incremental")
    base, rows = build(source, folder / "base").path, tiny_rows(16, seed=2)
    first = Manifest.read(base).shards[0].first_id
    changed = [{**row, "text": "Other words."} if row["id"] == first else row for row in rows]
    edited = write_rows(folder / "input.jsonl", [*changed, {"id": first + "+", "text": "New words. " * 200}])
    build(edited, folder / "s", base=base)
    verify(folder / "s")
    return base, edited, tree(folder / "s")


@pytest.mark.parametrize(("file", "moment"), BASE_POINTS)
def test_a_killed_build_with_a_base_goes_on_to_the_same_bytes(
    incremental: tuple[Path, Path, dict[str, bytes]], builder: Builder, tmp_path: Path, file: str, moment: str
) -> None:
    base, source, expected = incremental
    before, out = tree(base), tmp_path / "s"
    builder.start(source, out, file, moment, base=base)
    assert builder.exit_code() == -signal.SIGKILL
    assert not out.exists()
    build(source, out, base=base)
    assert tree(out) == expected
    assert tree(base) == before


def test_there_are_enough_points_and_every_stage_has_some() -> None:
    assert len(POINTS) >= 50
    assert {stage for stage, _, _ in POINTS} >= {"chunk", "embed", "train-index", "add", "finish"}


def test_killed_again_and_again_at_any_moment(
    source: Path, expected: dict[str, bytes], builder: Builder, tmp_path: Path
) -> None:
    random = np.random.default_rng()
    out = tmp_path / "s"
    killed = 0
    for attempt in range(10):
        child = builder.start(source, out)
        time.sleep(float(random.uniform(0, 0.03 * (attempt + 1))))
        with suppress(ProcessLookupError):  # it was done before
            os.kill(child, signal.SIGKILL)
        killed += builder.exit_code() == -signal.SIGKILL
        assert not out.exists() or tree(out) == expected
    build(source, out)
    assert tree(out) == expected
    assert killed


@dataclass(frozen=True)
class Dying:
    """An `engine.Job` whose process is killed before it does item 1."""

    job: Job

    def __call__(self) -> Callable[[int, Tell], None]:
        do = self.job()

        def die(item: int, tell: Tell) -> None:
            if item == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            do(item, tell)

        return die


class DyingEngine(LocalEngine):
    def map(self, job: Job, items: Sequence[int], **named: Any) -> Any:
        return super().map(Dying(job), items, **named)


def test_a_build_whose_worker_is_killed_goes_on(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "s"
    with pytest.raises(OpenbookError, match="shard 1: its process ended with exit code -9"):
        build(source, out, engine=DyingEngine(2))
    assert not out.exists()
    assert build(source, out).resumed
    assert tree(out) == expected


@pytest.mark.parametrize(
    ("stage", "file", "broken"),
    [(stage, file, errno.ENOSPC) for stage, names in FILES.items() if stage != "discard" for file in names]
    + [(stage, names[-1], errno.EACCES) for stage, names in FILES.items() if stage != "discard"],
)
def test_a_disk_that_cannot_be_written(
    source: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    file: str,
    broken: int,
) -> None:
    """Whichever file it is, the error names it and what to do."""
    replace, write_text = os.replace, Path.write_text

    def refuse(target: Path | str) -> None:
        if str(target).endswith(file):
            raise OSError(broken, os.strerror(broken))

    def refusing(source: Path, target: Path) -> None:
        refuse(target)
        replace(source, target)

    def refusing_text(path: Path, text: str, **named: Any) -> int:
        refuse(path)
        return write_text(path, text, **named)

    out = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refusing)
        patch.setattr(Path, "write_text", refusing_text)
        with pytest.raises(InputError, match=r"cannot be written: (the disk is full|permission denied)") as caught:
            build(source, out)
    assert Path(file).name in str(caught.value) or stage == "finish"
    assert not out.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    build(source, out)
    assert tree(out) == expected


def test_a_read_only_file_system(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "sync", refusing)
    with pytest.raises(InputError, match="cannot be written: the file system is read-only"):
        build(source, tmp_path / "s")


def test_a_file_size_limit_of_the_system(
    source: Path, expected: dict[str, bytes], builder: Builder, tmp_path: Path
) -> None:
    """A real refusal by the kernel in the middle of a file, to Arrow, Faiss and Python alike."""
    out = tmp_path / "s"
    for limit in (1_000, 2_000, 4_000, 6_000, 8_000):
        builder.start(source, out, limit=limit)
        assert builder.exit_code() == 3
        assert not out.exists()
    build(source, out)
    assert tree(out) == expected
