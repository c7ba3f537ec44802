"""The lease of a generation's snapshot: one for all that read it, given back when the last has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openbook_core.clients import RetrieverClient
from openbook_core.errors import UnavailableError
from openbook_generator.holds import Holds
from openbook_generator.schemas import CompletionRequest
from openbook_prompt.passage import Pin

sys.path.insert(0, str(Path(__file__).parent))
from generator_fakes import FakeRetriever, make_generator


class Owner:
    pass


@pytest.fixture
def fake() -> Iterator[tuple[FakeRetriever, str]]:
    retriever = FakeRetriever()
    running = retriever.start()
    yield retriever, running.address
    running.stop(0)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_snapshot_is_held_once_and_until_its_last_reader_has_ended(fake: tuple[FakeRetriever, str]) -> None:
    retriever, address = fake
    with RetrieverClient(address) as client:
        holds = Holds(client, idle_s=0.05)
        first, second, other = Owner(), Owner(), Owner()
        holds.keep(Pin("wiki", "snapshot-a", 1), first)
        holds.keep(Pin("wiki", "snapshot-a", 1), second)
        holds.keep(Pin("wiki", "snapshot-b", 2), other)
        assert retriever.pins == ["snapshot-a", "snapshot-b"]
        del first, other
        wait_for(lambda: retriever.pins == ["snapshot-a"])
        time.sleep(0.2)
        assert retriever.pins == ["snapshot-a"], "somebody reads it"
        del second
        wait_for(lambda: retriever.pins == [])
        third = Owner()
        holds.keep(Pin("wiki", "snapshot-a", 1), third)
        assert retriever.pins == ["snapshot-a"]
        holds.close()
        assert retriever.pins == []
        assert third is not None


def test_without_a_lease_the_generation_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with RetrieverClient("127.0.0.1:1") as client:
        holds = Holds(client, idle_s=0.05)
        owner = Owner()
        holds.keep(Pin("wiki", "snapshot-a", 1), owner)
        holds.close()
    assert "read without a lease" in caplog.text


def test_a_lease_that_was_not_to_be_had_is_asked_for_again(
    fake: tuple[FakeRetriever, str], caplog: pytest.LogCaptureFixture
) -> None:
    retriever, address = fake
    retriever.pin_refusal = UnavailableError("the registry is away")
    with RetrieverClient(address) as client:
        holds = Holds(client, idle_s=0.05)
        owner = Owner()
        holds.keep(Pin("wiki", "snapshot-a", 1), owner)
        assert "read without a lease" in caplog.text and retriever.pins == []
        retriever.pin_refusal = None
        wait_for(lambda: retriever.pins == ["snapshot-a"])
        del owner
        wait_for(lambda: retriever.pins == [])
        holds.close()


def test_a_prepared_request_holds_its_snapshot(fake: tuple[FakeRetriever, str]) -> None:
    retriever, address = fake
    generator = make_generator(address)
    try:
        prepared = generator.prepare(CompletionRequest(prompt="what is it", max_tokens=4))
        assert prepared.pin is not None
        retriever.live = "snapshot-b"
        again = generator.prepare(CompletionRequest(prompt="what is it", max_tokens=4))
        assert retriever.pins == ["snapshot-a", "snapshot-b"]
        assert prepared.pin.snapshot == "snapshot-a" != again.pin.snapshot
    finally:
        generator.close()
    assert retriever.pins == []
