"""The README's commands by hand, run as written but for the ports, the folder and the number of documents."""

from __future__ import annotations

from pathlib import Path

from guide_support import Guide

SMALLER = {
    ". .venv/bin/activate\n": "",
    "openbook db build": "openbook db build --limit-documents 4 --dtype float32",
    "Canada": "Algeria",
}


def test_the_commands_by_hand(tmp_path: Path) -> None:
    readme = Guide("README.md", tmp_path, SMALLER, section="The same by hand")
    start, live, ask = readme.blocks
    with readme.services(start), readme.services(live):
        answered = readme.run(ask)
    assert "SELLAL" in answered
    assert "off (gate 0)" in answered
