"""Knowledge that moves with the book, through cross attention alone: trains on synthetic worlds, then swaps the book.

Runs `openbook train` and `openbook eval recall` with the shipped configuration and writes what they found, with the
loss curve, to docs/results/synthetic-worlds.json and .png. A run that was stopped is gone on with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import ROOT, environment, write_result

CONFIG = "examples/train/synthetic-worlds.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override one setting")
    parser.add_argument("--documents", type=int, default=250, help="entities of each world")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "synthetic-worlds")
    options = parser.parse_args()
    where = environment()
    chosen = ["--config", CONFIG, *(part for each in options.set for part in ("--set", each))]
    _openbook("train", *chosen)
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        picture = options.out.with_suffix(".png")
        arguments = ["--documents", str(options.documents), "--json", str(figures), "--png", str(picture)]
        _openbook("eval", "recall", *chosen, *arguments)
        found = json.loads(figures.read_text(encoding="utf-8"))
    command = " ".join(["make results-synthetic:", "benchmarks/synthetic_worlds.py", *sys.argv[1:]])
    write_result(options.out.with_suffix(".json"), {"command": command, "environment": where, **found})


def _openbook(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "openbook_cli", *arguments], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
