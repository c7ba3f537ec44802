"""The security guide: its first service and calls are run as written, the other commands are read by the programs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from guide_support import ROOT, Guide

for part in ("unit/security", "integration"):
    sys.path.insert(0, str(ROOT / "tests" / part))


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from manifest_checks import parse_openbook
    from security_files import make_files

    files = make_files(tmp_path)
    files.path("tokens.jsonl").unlink()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    guide = Guide("docs/guides/security.md", tmp_path, {"serve embedder": "serve embedder --dtype float32 --threads 1"})
    start, ask, rest = guide.blocks
    with guide.services(start):
        allowed, refused = guide.run(ask).split("\n")[0].split("}{")
        assert '"object":"model"' in allowed
        assert "needs a token" in refused
    commands = rest.replace("\\\n", " ").strip().splitlines()
    assert len(commands) == 5
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "openbook"
        parse_openbook(words)
