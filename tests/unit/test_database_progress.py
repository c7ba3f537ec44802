"""Progress: the rate and the time left, on a terminal and in the build's log."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from openbook_cli.progress_line import ProgressLine, duration
from openbook_database.build.engine import LocalEngine
from openbook_database.build.progress import BuildLog, Stage, Update
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.testing import HashEncoder, tiny_rows, tiny_tokenizer, write_rows


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(tmp_path: Path) -> BuildLog:
    return BuildLog(tmp_path / "build.log.jsonl")


def events(log: BuildLog) -> Iterator[dict[str, object]]:
    return map(json.loads, log.path.read_text().splitlines())


def test_time_left_is_that_of_the_rate_without_reused_work(log: BuildLog, clock: Clock) -> None:
    updates: list[Update] = []
    with Stage("embed", 1000, updates.append, log, clock) as stage:
        clock.now += 50  # finding out what is done already
        stage.advance(400, reused=True)
        assert (updates[-1].rate, updates[-1].seconds_left) == (0, None)
        clock.now += 4
        stage.advance(100)
        assert (updates[-1].rate, updates[-1].seconds_left) == (25, 20)
        clock.now += 8
        stage.advance(500)
    assert updates[-1] == Update("embed", 1000, 1000, 50, 0)
    assert stage.seconds == 62


def test_the_rate_is_that_of_the_last_minute(log: BuildLog, clock: Clock) -> None:
    updates: list[Update] = []
    stage = Stage("embed", 100_000, updates.append, log, clock)
    for _ in range(100):
        clock.now += 1
        stage.advance(100)
    assert updates[-1].rate == pytest.approx(100)
    for _ in range(61):  # another program begins
        clock.now += 1
        stage.advance(10)
    assert updates[-1].rate == pytest.approx(10)
    assert updates[-1].seconds_left == pytest.approx((100_000 - 10_610) / 10)
    clock.now += 300  # one block that takes long
    stage.advance(30)
    assert updates[-1].rate == pytest.approx(0.1, rel=0.05)


def test_a_stage_of_unknown_length_has_a_rate_alone(log: BuildLog, clock: Clock) -> None:
    updates: list[Update] = []
    stage = Stage("chunk", None, updates.append, log, clock)
    clock.now += 2
    stage.advance(10)
    assert updates == [Update("chunk", 10, None, 5, None)]


def test_time_left_of_a_stage_of_unknown_length_follows_from_the_share_read(log: BuildLog, clock: Clock) -> None:
    updates: list[Update] = []
    stage = Stage("chunk", None, updates.append, log, clock)
    clock.now += 2
    stage.advance(10, share=0.25)
    stage.advance(30, share=1.0)
    assert updates == [Update("chunk", 10, None, 5, 6, 0.25), Update("chunk", 40, None, 20, 0, 1.0)]


@pytest.mark.parametrize("limit", [None, 200])
def test_the_chunk_stage_tells_the_share_that_is_read(tmp_path: Path, limit: int | None) -> None:
    source, updates = write_rows(tmp_path / "rows.jsonl", tiny_rows(600)), list[Update]()
    build_snapshot(
        [source],
        tmp_path / "out",
        database="t",
        tokenizer=tiny_tokenizer(),
        encoder=HashEncoder(8),
        settings=BuildSettings(chunk_block=256, limit_documents=limit),
        progress=updates.append,
    )
    shares = [update.share or 0 for update in updates if update.stage == "chunk"]
    steps = np.diff([0, *shares])
    assert len(shares) > 3 and (steps >= 0).all() and steps.max() < 0.5
    assert shares[-1] == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_every_stage_tells_of_its_parts(tmp_path: Path, workers: int) -> None:
    source, updates = write_rows(tmp_path / "rows.jsonl", tiny_rows(120)), list[Update]()
    build_snapshot(
        [source],
        tmp_path / "out",
        database="t",
        tokenizer=tiny_tokenizer(),
        encoder=HashEncoder(8),
        settings=BuildSettings(chunk_length=16, embed_block=64, index="IVF8,SQ8", shards=2),
        progress=updates.append,
        engine=LocalEngine(workers),
    )
    for stage, least in (("train-index", 11), ("add", 16), ("finish", 12)):
        told = [update for update in updates if update.stage == stage]
        done = [update.done for update in told]
        assert len(told) >= least and done == sorted(done) and done[-1] == told[-1].total
        assert max(np.diff([0, *done])) < 0.6 * done[-1]
        assert any(update.rate > 0 and update.seconds_left for update in told)


def test_the_log_has_an_event_every_ten_seconds(log: BuildLog, clock: Clock) -> None:
    with Stage("embed", 400, lambda update: None, log, clock) as stage:
        for _ in range(35):
            clock.now += 1
            stage.advance(10)
    told = [event for event in events(log) if event["event"] == "progress"]
    assert [event["done"] for event in told] == [100, 200, 300]
    wanted = {"stage": "embed", "total": 400, "reused": 0, "rate": 10, "seconds_left": 20}
    assert {name: told[1][name] for name in wanted} == wanted
    assert [event["event"] for event in events(log)] == ["begin", "progress", "progress", "progress", "end"]


def test_one_line_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    line = ProgressLine()
    for update in (
        Update("embed", 1, 10, 0.0),
        Update("embed", 5, 10, 1234.5, 200.0),
        Update("chunk", 7, None, 2.0),
        Update("chunk", 7, None, 2.0, 3.5, 0.5),
        Update("pull (bytes)", 1 << 20, 1 << 21, 2048.0, 512.0, unit="bytes"),
    ):
        line(update)
    assert capsys.readouterr().err.split("\r\x1b[K")[1:] == [
        "embed: 1 of 10",
        "embed: 5 of 10, 1,234 chunks/s, 3 min 20 s left",
        "chunk: 7, 2.0 chunks/s",
        "chunk: 7 (about 50%), 2.0 chunks/s, 4 s left",
        "pull (bytes): 1048576 of 2097152, 2,048 bytes/s, 8 min 32 s left",
    ]


def test_a_line_for_every_tenth_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine("book ")
    for done in range(101):
        line(Update("embed", done, 100, 10.0, (100 - done) / 10))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[5] == "book embed: 50 of 100, 10.0 chunks/s, 5 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (18_420, "5 h 7 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
