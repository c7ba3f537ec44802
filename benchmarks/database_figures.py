"""From the trials of `database.py` to its figures, the rates of `openbook db plan`, its printed lines and README's table.

    python benchmarks/database_figures.py docs/results/database.json

writes the table into README.md and the rates beside `openbook_database.plan`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measure import ROOT

Child = Mapping[str, Any]

PARTS = ("share", "sizes", "torch", "peers", "adding", "codes")
RATES = ROOT / "libs" / "database" / "openbook_database" / "build" / "rates.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- docs/results/database.json -->", "<!-- end -->"
_MB = 1e6


def summarise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The figures, every one of them from `raw` alone; None where the part that it follows from was not measured.

    `encoder_share`: chunks per second of a build over those of the bare encoder on the same lists of texts, medians;
    `stages`: share of each stage in the wall time of those builds, `encoder` the part of `embed` inside the encoder.
    `peak_rss_mb`: by chunks, of processes that build with random vectors; `peak_over_index_mb`: with a page that is mapped
    twice counted once, less the index or the sample that it was trained on, the larger; `peak_growth`: of that, the largest
    size over the one before; `peak_torch_over_index_mb`: with a small BERT. `add_over_faiss`: by recipe, seconds of bare
    Faiss over those of our index files; `add_over_faiss_by_size`: by chunks, with the recipe of that size;
    `add_stage_over_faiss`: over the stage, which also reads blocks and writes tokens, documents and vectors, and all there is
    of trials before the index files were timed by themselves. `incremental_share`: 1% of the documents of the large corpus
    changed, over the full build, both computed from builds with random vectors and the encoder's rate for the chunks that
    each encoded; `incremental_share_measured`: those builds as they were timed, without it; `incremental_share_small`: with
    the encoder itself. `vs_`: the peer's seconds over ours, above 1 where we are quicker.
    """
    return {**_share(raw), **_sizes(raw), **_adding(raw), **_peers(raw), "rates": rates(raw)}


def _share(raw: Mapping[str, Any]) -> dict[str, Any]:
    names = ("encoder_share", "encoder_share_by_cpu_time", "chunks_per_s", "stages", "incremental_share_small")
    if "share" not in raw:
        return dict.fromkeys(names)
    builds, bare, small = (raw["share"][name] for name in ("build", "bare", "incremental"))
    wall_s = median_of(builds, "wall_s")
    stages = {stage: median(trial["stage_s"][stage] for trial in builds) / wall_s for stage in builds[0]["stage_s"]}
    stages["encoder"] = median_of(builds, "encode_s") / wall_s
    figures = (
        round(median_of(bare, "wall_s") / wall_s, 4),
        round(median_of(bare, "cpu_s") / median_of(builds, "cpu_s"), 4),
        round(builds[0]["chunks"] / wall_s, 2),
        {stage: round(share, 4) for stage, share in stages.items()},
        round(small["incremental"]["wall_s"] / small["full"]["wall_s"], 4),
    )
    return dict(zip(names, figures, strict=True))


def _sizes(raw: Mapping[str, Any]) -> dict[str, Any]:
    builds = raw["sizes"]["builds"] if "sizes" in raw else None
    torch = raw["torch"]["builds"] if "torch" in raw else None
    over = None if builds is None else _by_chunks(builds, peak_over_index_mb)
    peaks = list((over or {}).values())
    incremental = measured = None
    if builds is not None:
        full, changed = (raw["sizes"]["incremental"][name] for name in ("full", "incremental"))
        measured = round(changed["wall_s"] / full["wall_s"], 4)
        if "share" in raw:
            incremental = round(_with_encoder(raw["sizes"]["incremental"], _encode_per_s(raw)), 4)
    return {
        "peak_rss_mb": builds and _by_chunks(builds, lambda child: child["peak_rss_mb"]),
        "peak_anonymous_mb": builds and _by_chunks(builds, lambda child: child["peak_anonymous_mb"]),
        "peak_over_index_mb": over,
        "peak_growth": round(peaks[-1] / peaks[-2], 4) if len(peaks) > 1 else None,
        "peak_torch_over_index_mb": torch and _by_chunks(torch, peak_over_index_mb),
        "incremental_share": incremental,
        "incremental_share_measured": measured,
    }


def _by_chunks(builds: Sequence[Child], figure: Any) -> dict[str, float]:
    return {str(child["chunks"]): round(figure(child), 1) for child in builds}


def peak_over_index_mb(child: Child) -> float:
    """Peak memory of a build, each page once, less what the index needs: the sample that it is trained on, later itself, so the
    larger of them."""
    needed = max(child["index"]["bytes"], child["training_sample_bytes"])
    return float(child["peak_once_mb"] - needed / _MB)


def _adding(raw: Mapping[str, Any]) -> dict[str, Any]:
    builds = raw.get("sizes", {}).get("builds", ())
    added = [child for child in builds if "adding" in child]
    recipes = raw["adding"]["recipes"] if "adding" in raw else None
    stage = {
        str(child["chunks"]): round(median(bare_s) / child["stage_s"]["add"], 4)
        for child in builds
        if (bare_s := child.get("adding", child).get("bare_faiss_s"))
    }
    return {
        "add_over_faiss": recipes and {name: _add_over_faiss(trials) for name, trials in recipes.items()},
        "add_over_faiss_by_size": {str(child["chunks"]): _add_over_faiss(child["adding"]) for child in added} or None,
        "add_stage_over_faiss": stage or None,
    }


def _add_over_faiss(trials: Mapping[str, Sequence[float]]) -> float:
    return round(median(trials["bare_faiss_s"]) / median(trials["ours_s"]), 4)


def _peers(raw: Mapping[str, Any]) -> dict[str, Any]:
    if "peers" not in raw:
        return {"vs_retro_pytorch": None, "vs_autofaiss": None}
    retro, index = raw["peers"]["retro_pytorch"], raw["peers"]["autofaiss"]
    return {
        "vs_retro_pytorch": round(
            median_of(retro["retro_pytorch"], "seconds") / median_of(retro["ours"], "seconds"), 4
        ),
        "vs_autofaiss": {
            "build": round(index["autofaiss"]["seconds"] / index["ours"]["seconds"], 4),
            **{
                name: {side: round(index[side][name], 4) for side in ("ours", "autofaiss")}
                for name in ("recall", "query_ms", "bytes")
            },
        },
    }


def rates(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `openbook db plan --rates` reads; `openbook_database.plan.Rates` says what each is. Circumstances are those of the
    part `sizes`."""
    if not {"share", "sizes", "codes"} <= set(raw):
        return None
    largest, parts, run = raw["sizes"]["builds"][-1], raw["codes"]["rates"], raw["sizes"]["run"]
    builds = raw["share"]["build"]
    # The probe texts are encoded in the stage "finish".
    chunks = builds[0]["chunks"] / raw["share"]["texts"]
    inside = min(1.0, median(chunks * trial["encode_s"] / trial["stage_s"]["embed"] for trial in builds))
    return {
        "machine": f"{run['cores']} cores of {run['cpu']}",
        "date": run["date"],
        "commit": run["commit"],
        "command": run["command"],
        "load": run["load_1m_before"],
        "model": run["model"],
        "dtype": raw["share"]["dtype"],
        "data": run["data"],
        "chunks_per_document": round(largest["chunks"] / largest["documents"], 3),
        "document_bytes": round(largest["documents_bytes"] / largest["documents"], 1),
        "chunk_per_s": round(largest["chunks"] / largest["stage_s"]["chunk"], 1),
        "encode_per_s": round(_encode_per_s(raw), 2),
        "embed_share": round(inside, 4),
        "finish_bytes_per_s": round(largest["snapshot_bytes"] / largest["stage_s"]["finish"]),
        "write_bytes_per_s": round(
            (largest["snapshot_bytes"] - largest["documents_bytes"]) / largest["stage_s"]["add"]
        ),
        "build_peak_mb": round(largest["peak_anonymous_mb"], 1),
        "assign_flops": round(parts["assign_flops"]),
        "assign_flops_one_thread": round(parts["assign_flops_one_thread"]),
        "graph_lists": parts["lists"],
        "graph_assign_per_s": round(parts["graph_assign_per_s"], 1),
        "codes_per_s": round(parts["codes_per_s"], 1),
        "code_recall": {codec.split(",")[-1]: round(recall, 4) for codec, recall in raw["codes"]["recall"].items()},
        "code_recall_vectors": raw["codes"]["vectors"],
    }


def _encode_per_s(raw: Mapping[str, Any]) -> float:
    return float(raw["share"]["texts"] / median_of(raw["share"]["bare"], "wall_s"))


def _with_encoder(trial: Mapping[str, Any], encode_per_s: float) -> float:
    """The share if each build had also paid the encoder for the chunks that it encoded."""
    full, changed = (
        build["wall_s"] + build["encoded_chunks"] / encode_per_s for build in (trial["full"], trial["incremental"])
    )
    return float(changed / full)


def median_of(trials: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(median(trial[name] for trial in trials))


def report(result: Mapping[str, Any]) -> list[str]:
    """The lines that are printed."""
    raw = result["raw"]
    lines = []
    for part, found in raw.items():
        run = found["run"]
        lines.append(
            f"{part:<8} {run['data']}, {run['model'].split('/')[-1]}; {run['cores']} cores of {run['cpu']}; load "
            f"{run['load_1m_before']} before, {run['load_1m_after']} after, {run['seconds']:.0f} s; {run['commit'][:12]}"
        )
    if "share" in raw:
        amx = "amx_bf16" in raw["share"]["run"]["cpu"]
        bfloat16 = "is quick here, see openbook embedder compare" if amx else "was not measured: no AMX"
        lines.append(f"encoder in {raw['share']['dtype']}; bfloat16 {bfloat16}")
    lines.append(
        f"{'chunks':>9} {'vectors':>15} {'index':>24} {'seconds':>8} {'ms/chunk':>8} {'peak MB':>8} {'anon MB':>8} "
        f"{'index MB':>8} {'over MB':>8}"
    )
    for part in ("sizes", "torch"):
        for child in raw.get(part, {}).get("builds", ()):
            vectors = "random vectors" if part == "sizes" else "random BERT"
            lines.append(
                f"{child['chunks']:>9} {vectors:>15} {child['index']['factory']:>24} {child['wall_s']:>8.1f} "
                f"{1e3 * child['wall_s'] / child['chunks']:>8.3f} {child['peak_rss_mb']:>8.0f} "
                f"{child['peak_anonymous_mb']:>8.0f} {child['index']['bytes'] / _MB:>8.1f} {peak_over_index_mb(child):>8.0f}"
            )
    if "peers" in raw:
        retro, index = raw["peers"]["retro_pytorch"], raw["peers"]["autofaiss"]
        lines += [
            f"{side:<14} {retro['documents']} documents, {retro[side][0]['chunks']} chunks: "
            f"{median_of(retro[side], 'seconds'):.1f} s"
            for side in ("ours", "retro_pytorch")
        ]
        lines += [
            f"{side:<14} {index['vectors']} vectors: {index[side]['factory']}, {index[side]['seconds']:.1f} s, "
            f"recall@10 {index[side]['recall']:.3f} at {index[side]['query_ms']:.2f} ms, {index[side]['bytes'] / _MB:.1f} MB"
            for side in ("ours", "autofaiss")
        ]
    return lines + [f"{name:<26} {value}" for name, value in result.items() if name not in ("raw", "rates")]


def table(result: Mapping[str, Any]) -> list[str]:
    """README's lines: what was measured, of the goals, and by size."""
    raw = result["raw"]
    rows = [(what, goal, figure) for what, goal, figure in _goals(result) if figure is not None]
    lines = ["| building a book | goal | measured |", "|---|---|---|"]
    lines += [f"| {what} | {goal} | {figure} |" for what, goal, figure in rows]
    if "sizes" in raw:
        lines += [
            "",
            "| chunks | index | seconds | ms a chunk | peak MB | over the index, MB |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {child['chunks']:,} | {child['index']['factory']} | {child['wall_s']:.1f} | "
            f"{1e3 * child['wall_s'] / child['chunks']:.2f} | {child['peak_rss_mb']:.0f} | {peak_over_index_mb(child):.0f} |"
            for child in raw["sizes"]["builds"]
        ]
    runs = [found["run"] for found in raw.values()]
    commits = ", ".join(dict.fromkeys(run["commit"][:12] for run in runs))
    commands = ", ".join(dict.fromkeys(f"`{run['command']}`" for run in runs))
    loads = max(run["load_1m_before"] for run in runs)
    begun = "a part" if len({run["date"] for run in runs}) == len(runs) else "the run"
    notes = "".join(f"; {note}" for note in dict.fromkeys(run["note"] for run in runs if "note" in run))
    return [
        *lines,
        "",
        f"{commands} on {runs[0]['cores']} cores of {runs[0]['cpu']}, {runs[-1]['date'][:10]}, commit {commits}, load at most "
        f"{loads:g} before {begun}; the table by size is with random vectors, without the encoder's time{notes}; all trials in "
        "[docs/results/database.json](docs/results/database.json).",
    ]


def _goals(result: Mapping[str, Any]) -> list[tuple[str, str, str | None]]:
    def number(name: str) -> str | None:
        return None if result[name] is None else f"{result[name]:.3f}"

    def each(name: str, digits: str = "g") -> str | None:
        named = result[name]
        return None if named is None else ", ".join(f"{key} {value:{digits}}" for key, value in named.items())

    over, found = result["peak_over_index_mb"], result["vs_autofaiss"]
    stage: list[tuple[str, str, str | None]] = []
    if result["add_over_faiss"] is None:
        stage = [("the whole stage add over bare Faiss, by chunks", "0.9", each("add_stage_over_faiss", ".3f"))]
    return [
        ("chunks per second over the bare encoder's, float32", "0.90", number("encoder_share")),
        ("peak memory over the index or its training sample", "2,000 MB", over and f"{max(over.values()):,.0f} MB"),
        ("its growth from the last size but one to the largest", "1", number("peak_growth")),
        ("the same with torch and a small BERT, by chunks, MB", "2,000", each("peak_torch_over_index_mb")),
        ("adding over bare Faiss, by index", "0.9", each("add_over_faiss")),
        *stage,
        (
            "1% of the documents changed, over a full build: computed, with the encoder's rate",
            "0.03",
            number("incremental_share"),
        ),
        ("... measured, without the encoder", "", number("incremental_share_measured")),
        ("retro-pytorch's time from text to neighbours over ours", "1", number("vs_retro_pytorch")),
        ("autofaiss' time for an index over ours", "1", found and f"{found['build']:.3f}"),
        (
            "recall@10 within the same memory",
            "",
            found and f"ours {found['recall']['ours']:.3f}, autofaiss {found['recall']['autofaiss']:.3f}",
        ),
    ]


def written(readme: str, result: Mapping[str, Any]) -> str:
    """README's text with the table of `result` between its marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + "\n".join([BEGIN, *table(result), END]) + after


def main(arguments: Sequence[str]) -> int:
    result = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    README.write_text(written(README.read_text(encoding="utf-8"), result), encoding="utf-8")
    if result["rates"] is not None:
        RATES.write_text(json.dumps(result["rates"], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
