"""From the trials of `first_path.py` to its figures and its printed lines."""

from __future__ import annotations

from statistics import median
from typing import Any


def summarise(
    build: dict[str, Any], search: dict[str, Any], decode: dict[str, Any], memory: dict[str, Any]
) -> dict[str, Any]:
    """The figures, medians over trials: search p50 at one query a call, throughput at the largest batch, tokens of one
    sequence."""
    trials, largest = search["trials"], f"batch_{search['batches'][-1]}"
    service, peer = (trials[largest][side] for side in ("service", "in_process"))
    tokens = decode["trials"]["batch_1"]
    return {
        "chunks_per_s": round(median(trial["chunks"] / trial["wall_s"] for trial in build["trials"]), 2),
        "encoder_share": round(median(trial["network_s"] / trial["wall_s"] for trial in build["trials"]), 4),
        "search_p50_ms": round(median(trial["p50_ms"] for trial in trials["batch_1"]["service"]), 4),
        "search_throughput_ratio": round(
            median(trial["queries_per_s"] for trial in service) / median(trial["queries_per_s"] for trial in peer), 4
        ),
        "tokens_per_s_off": round(median(trial["tokens_per_s"] for trial in tokens["off"]), 2),
        "tokens_per_s_on": round(median(trial["tokens_per_s"] for trial in tokens["on"]), 2),
        "raw": {
            "dtype": {"encoder": build["dtype"], "generator": decode["dtype"], "index": "float32"},
            "batch": {"search": search["batches"], "decode": decode["batches"]},
            "index": search["index"],
            "model": {"encoder": build["model"], "generator": decode["model"]},
            "build": build,
            "search": search,
            "decode": decode,
            "memory": memory,
        },
    }


def report(result: dict[str, Any]) -> list[str]:
    """The lines that are printed."""
    raw = result["raw"]
    lines = [
        f"{raw['cores']} cores of {raw['cpu']}; load {raw['load_1m_before']} before, {raw['load_1m_after']} after",
        f"build             {result['chunks_per_s']:.1f} chunks/s, {result['encoder_share']:.0%} in the encoder's "
        f"network ({raw['dtype']['encoder']})",
    ]
    for name, sides in raw["search"]["trials"].items():
        p50 = {side: median(trial["p50_ms"] for trial in trials) for side, trials in sides.items()}
        rate = {side: median(trial["queries_per_s"] for trial in trials) for side, trials in sides.items()}
        lines.append(
            f"Search {name:<10} p50 {p50['service']:.2f} ms, {rate['service']:.0f} queries/s; Faiss in-process "
            f"{p50['in_process']:.3f} ms, {rate['in_process']:.0f} queries/s; ratio "
            f"{rate['service'] / rate['in_process']:.3f}"
        )
    for name, sides in raw["decode"]["trials"].items():
        rate = {side: median(trial["tokens_per_s"] for trial in trials) for side, trials in sides.items()}
        lines.append(
            f"decode {name:<10} OFF {rate['off']:.1f} tokens/s, ON {rate['on']:.1f} tokens/s "
            f"(medians of {len(sides['on'])})"
        )
    lines.append(f"  {raw['decode']['dtype']}; ON: {raw['decode']['on_means']}")
    for name, part in raw["memory"].items():
        empty, control, after = (part[f"anonymous_{when}"] / 1e6 for when in ("empty", "control", "after"))
        lines += [
            f"memory {name:<10} maps {part['mapped'] / 1e6:.1f} MB of the snapshot ({part['resident'] / 1e6:.1f} MB "
            f"present, {part['private_copy']} bytes of it copied)",
            f"  private {empty:.1f} MB empty, {control - empty:+.1f} MB with a control of {part['control_documents']} "
            f"documents, then {after - control:+.1f} MB with this one",
        ]
    return lines
