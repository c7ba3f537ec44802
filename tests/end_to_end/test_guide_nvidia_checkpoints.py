"""The commands of the guide to NVIDIA's checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

from guide_support import Guide

SMALLER = {
    "--limit-tokens 2000": "--limit-tokens 200",
    "--limit-documents 20": "--limit-documents 2 --dtype float32",
}


def test_the_guide(tmp_path: Path) -> None:
    guide = Guide("docs/guides/nvidia-checkpoints.md", tmp_path, SMALLER)
    convert, describe, build, start, on, others = guide.blocks
    assert "new: 0" in guide.run(convert)
    assert len(json.loads((tmp_path / "build" / "conversion.json").read_text())["loaded"]) == 136
    assert "48,461,840,384" in guide.run(describe)
    guide.run(build)
    with guide.services(start):
        assert "shuffled" in guide.run(on)
    figures = json.loads((tmp_path / "build" / "on.json").read_text())
    assert figures["cross_attention"] == "on"
    assert figures["on"]["nats_per_token"] != figures["off"]["nats_per_token"]
    told = guide.run(others)
    assert "StableLmForCausalLM OpenbookRetroForCausalLM" in told
    off, difference = (float(line.rpartition(" ")[2]) for line in told.splitlines()[-2:])
    assert off < 1e-4 < difference
