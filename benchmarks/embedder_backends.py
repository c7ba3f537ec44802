"""torch, ONNX Runtime and OpenVINO on this machine: speed, and what each changes in a search.

    python benchmarks/embedder_backends.py [--quick] [--json FILE]

Exports the model three times (ONNX in float32 and int8, OpenVINO in float32) and compares them with torch in float32 and
bfloat16, as `openbook embedder export` and `compare` do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import ROOT, environment, run_benchmark

TEXTS = ROOT / "examples" / "factbook" / "2026-02-19.jsonl.zst"
EXPORTS = (("onnx", "float32"), ("openvino", "float32"), ("onnx", "int8"))
QUICK_CHUNKS = 120


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CHUNKS} chunks, two rounds")
    parser.add_argument("--model", help="folder or name; by default the one that is served by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and all trials")
    options = parser.parse_args(arguments)
    from openbook_core.weights import DEFAULT_EMBEDDER

    return run_benchmark(
        lambda work: run(options.model or DEFAULT_EMBEDDER, options.quick, work),
        report,
        limit_s=3600,
        json_file=options.json,
    )


def run(model: str, quick: bool, work: Path) -> dict[str, Any]:
    """What `compare_backends` gives, and the circumstances."""
    from openbook_cli.embedder import _passages
    from openbook_embedder.compare import compare_backends
    from openbook_embedder.export import export_encoder

    circumstances, texts = environment(), _passages(TEXTS)
    if quick:
        texts = texts[:QUICK_CHUNKS]
    folders = []
    for backend, dtype in EXPORTS:
        print(f"exporting {backend} {dtype}", file=sys.stderr, flush=True)
        folders.append(work / f"{backend}-{dtype}")
        export_encoder(model, folders[-1], backend=backend, dtype=dtype, texts=texts)  # type: ignore[arg-type]
    print("comparing", file=sys.stderr, flush=True)
    found = compare_backends(model, folders, texts, rounds=2 if quick else 5)
    command = "python benchmarks/embedder_backends.py" + " --quick" * quick
    return {"command": command, **circumstances, "source": TEXTS.name, **found}


def report(result: dict[str, Any]) -> list[str]:
    """The rows of the guide's table."""
    effects = result["effect"]
    return [
        f"| {name} | {rate} | {effects[name]['overlap']:.2%} | {effects[name]['probe_cosine']:.5f} |"
        for name, rate in result["chunks_per_s"].items()
    ]


if __name__ == "__main__":
    sys.exit(main())
