"""Services of a guide that end too early, or late."""

from __future__ import annotations

import time
from pathlib import Path

import guide_support
import psutil
import pytest
from guide_support import Guide


@pytest.fixture
def guide_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """guide_of(block) -> the guide that has it."""

    def write(block: str) -> Guide:
        guides = tmp_path / "docs" / "guides"
        guides.mkdir(parents=True)
        (guides / "x.md").write_text(f"```sh\n{block}```\n")
        monkeypatch.setattr(guide_support, "ROOT", tmp_path)
        return Guide("docs/guides/x.md", tmp_path, {})

    return write


READY = """sh -c 'echo "\\"address\\""; sleep 60' serve &\n"""


@pytest.mark.parametrize("then", ["sh -c 'exit 3' serve &\n", "false\necho serve that\n"])
def test_what_ends_before_it_is_ready_is_noticed_at_once(guide_of, then: str) -> None:
    guide, began = guide_of(READY + then), time.monotonic()
    with pytest.raises(AssertionError, match="ended early"), guide.services(guide.blocks[0]):
        pass
    assert time.monotonic() - began < 20


def test_what_ends_in_the_middle_is_noticed(guide_of) -> None:
    guide = guide_of("""sh -c 'echo "\\"address\\""; sleep 0.5' serve &\n""")
    with pytest.raises(AssertionError, match="ended early"), guide.services(guide.blocks[0]):
        time.sleep(2)


def test_a_service_that_takes_its_time_has_ended_afterwards(guide_of, tmp_path: Path) -> None:
    slow = """trap "sleep 1; exit" TERM; echo $$ > pid; echo "\\"address\\""; while :; do sleep 0.1; done"""
    guide = guide_of(f"sh -c '{slow}' serve &\n")
    with guide.services(guide.blocks[0]):
        process = psutil.Process(int((tmp_path / "pid").read_text()))
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
