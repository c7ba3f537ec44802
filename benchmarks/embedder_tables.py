"""The table of `docs/guides/embedder.md` out of the results of `embedder.py`.

python benchmarks/embedder_tables.py [docs/results/embedder.json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedder_figures import texts_per_s
from measure import ROOT

# Row, figure, and the ratio that is wanted.
ROWS = (
    (
        "sentence-transformers at its best, same dtype, chunks of 64 tokens",
        "vs_sentence_transformers_same_dtype",
        "1.1",
    ),
    ("... lengths 8 to 256", "vs_sentence_transformers_same_dtype_mixed", "1.1"),
    ("sentence-transformers with nothing set (float32, 32 a batch), chunks", "vs_sentence_transformers_fp32", ""),
    ("... lengths 8 to 256", "vs_sentence_transformers_fp32_mixed", ""),
    ("sentence-transformers at its best in float32, chunks", "vs_sentence_transformers_fp32_best", ""),
    ("the bare loop, through gRPC, 16 callers of 32 texts", "grpc_over_bare", "0.90"),
    ("... 16 callers of one text", "grpc_singles_over_bare", "0.75"),
    ("infinity at its best, same dtype, both HTTP, 16 callers of 32 chunks", "vs_infinity", "1.5"),
    ("... 16 callers of one chunk", "vs_infinity_singles", ""),
    ("... 16 callers of 4 texts of 8 to 256 tokens", "vs_infinity_mixed", ""),
    ("infinity with nothing set (float32), 16 callers of 32 chunks", "vs_infinity_default", ""),
    ("... 16 callers of one chunk", "vs_infinity_default_singles", ""),
    ("... 16 callers of 4 texts of 8 to 256 tokens", "vs_infinity_default_mixed", ""),
)
# What a row is against, where results of an earlier program have the figure against something else.
SIDES = dict.fromkeys(
    ("vs_sentence_transformers_fp32", "vs_sentence_transformers_fp32_mixed"), "sentence_transformers_default"
)


def table(result: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown; a peer that was not measured, or not with nothing set, has no row."""
    lines = ["| texts a second, ours over the other's | wall time | processor time | wanted |", "|---|---|---|---|"]
    raw = result["raw"]
    parts = {**raw["offline"], **raw["served"]}
    measured = {None, *(side for sides in parts.values() for side in sides)}
    for row, figure, wanted in ROWS:
        if result.get(figure) is not None and SIDES.get(figure) in measured:
            by_cpu = result.get(f"{figure}_by_cpu_time")
            lines.append(f"| {row} | {result[figure]:.2f} | {'' if by_cpu is None else f'{by_cpu:.2f}'} | {wanted} |")
    rates = [
        f"{part} {side} {texts_per_s(trials):.0f} ({len(trials)} rounds)"
        for part, sides in parts.items()
        for side, trials in sides.items()
    ]
    best = {side: each["best"] for side, each in raw["batch"].get("chunks", {}).items()}
    return [
        *lines,
        "",
        f"{raw['model']} in {raw['dtype']}, {raw['cores']} cores of {raw['cpu']}, {raw['date'][:10]}, {raw['commit'][:9]}.",
        f"Texts a second: {'; '.join(rates)}. Best settings on chunks: {best}.",
        *(
            f"{name} {value}"
            for name, value in result.items()
            if name.startswith(("p50", "p99", "start", "resident", "cosine"))
        ),
    ]


def main(arguments: Sequence[str]) -> int:
    file = Path(arguments[0]) if arguments else ROOT / "docs" / "results" / "embedder.json"
    print("\n".join(table(json.loads(file.read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
