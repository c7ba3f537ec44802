"""Does a tiny RETRO predict text better than GPTs, because of what it retrieves? (`make results-language`)

From scratch, on OpenStax and Wikipedia: the RETRO, its GPT twin (the same decoder) and a GPT of as many parameters, the
same sequences in the same order. Measured on held-out documents; whatever overlaps with them is left out of the book
and of the training.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from language_corpus import Size, keep, write_corpus
from measure import ROOT, environment, write_result

FULL = Size(held_out=100, held_out_characters=6000, characters=7_000_000)
QUICK = Size(held_out=12, held_out_characters=1500, characters=150_000)
MODELS = {"retro": "RETRO", "twin": "GPT twin, the same decoder", "gpt": "GPT of as many parameters"}
_DATABASE = "language"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 with all figures, 1 without. A run that was interrupted goes on from its finished steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("OPENBOOK_DATA"), help="folder of the corpora")
    parser.add_argument(
        "--quick", action="store_true", help="a few documents and steps: that it runs, not what it shows"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build/language", help="folder of the run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the RETRO's figures")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="draw the three trainings")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("give --data, or set OPENBOOK_DATA: the folder with openstax/ and wikipedia/")
    from openbook_cli.demo.processes import Processes, leave_on_signals
    from openbook_core.errors import OpenbookError
    from openbook_trainer.eval.perplexity_table import plot

    leave_on_signals()
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        with Processes(options.work / "logs") as processes:
            result = run(processes, options.data, options.work, QUICK if options.quick else FULL, quick=options.quick)
    except OpenbookError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    print("\n".join(table(result)))
    if options.json:
        write_result(options.json, result)
    if options.plot:
        plot(result["raw"]["perplexity"], options.plot)
    if options.curves:
        draw_curves(result, options.curves)
    return 0


def run(processes: Any, data: Path, work: Path, size: Size, *, quick: bool) -> dict[str, Any]:
    """Every step in turn; `raw.seconds` says how long each took on this machine."""
    circumstances, seconds = environment(), {}
    book, held_out = work / "book", work / "held-out.jsonl"

    def timed(name: str, step: Callable[[], Any]) -> Any:
        print(f"{name} ...", file=sys.stderr)
        begun = time.monotonic()
        found = step()
        seconds[name] = round(time.monotonic() - begun, 1)
        return found

    counts = timed("corpus", lambda: write_corpus(data, work, size))
    build = ["db", "build", str(work / "candidates.jsonl"), "--out", str(book), "--database", _DATABASE]
    build += ["--tokenizer", str(work / "tokenizer"), "--dedup", "near", "--decontaminate", str(held_out)]
    timed("book", lambda: processes.run("db build", build))
    counts["trained_on"] = keep(work, book)
    # The corpus is the book itself: for each of its chunks the nearest ones of other documents.
    search = ["db", "neighbours", "--corpus", str(book), "--database", str(book), "--out", str(work / "neighbours")]
    timed("neighbours", lambda: processes.run("db neighbours", search))
    training = {}
    for name in MODELS:
        train = ["train", "--config", str(ROOT / f"examples/train/evidence-{name}.yaml"), *_settings(work, name, quick)]
        lines = timed(f"train {name}", lambda arguments=train: processes.run("train", arguments))  # type: ignore[misc]
        training[name] = trained(work / name, json.loads(lines[-1]))
    address = serve(processes, work, book)
    result = timed("measure", lambda: measure(address, work, held_out))
    seconds["all"] = round(sum(seconds.values()), 1)
    command = f"python benchmarks/language.py{' --quick' if quick else ''}"
    raw = {"command": command, **circumstances, "size": asdict(size), "documents": counts, "seconds": seconds}
    return {**result, "raw": {**raw, "training": training, **result["raw"]}}


def trained(out: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """What a run was, how it went and how it ended; nothing of where its files lie."""
    from openbook_trainer.curves import read_curves
    from openbook_trainer.eval.perplexity import SIDES

    steps, loss = read_curves(out)["loss"]
    figures = {name: value for name, value in summary.items() if name not in ("checkpoint", "model")}
    held_out = {side: figures.pop(f"loss_{side}") for side in SIDES if f"loss_{side}" in figures}
    return {**figures, "held_out_nats_per_token": held_out, "curve": {"step": steps, "nats_per_token": loss}}


def serve(processes: Any, work: Path, book: Path) -> str:
    """The address of a router that serves the book."""
    from openbook_cli.swap import swap_to
    from openbook_core.clients import AdminClient

    registry = str(work / "registry")
    embedder = processes.start("embedder", ["serve", "embedder", "--port", "0"])
    processes.start("shard", ["serve", "retriever", "--role", "shard", "--registry", registry])
    router = ["serve", "retriever", "--role", "router", "--port", "0", "--registry", registry, "--embedder", embedder]
    address: str = processes.start("router", router)
    with AdminClient(address) as admin:
        swap_to(admin, _DATABASE, admin.register(_DATABASE, str(book.absolute())).snapshot)
    return address


def measure(address: str, work: Path, data: Path) -> dict[str, Any]:
    """The RETRO as `openbook eval perplexity` has it, and each GPT against it on the same tokens, also by overlap."""
    import torch

    from openbook_core.tokenizer import Tokenizer
    from openbook_model import load
    from openbook_trainer.eval.clusters import cluster
    from openbook_trainer.eval.overlap import by_overlap, overlaps
    from openbook_trainer.eval.perplexity import PerplexityConfig, evaluate, token_losses
    from openbook_trainer.eval.retrieved import retrieve
    from openbook_trainer.eval.texts import read_texts
    from openbook_trainer.eval.windows import resolve_sliding

    folders = {name: work / name / "model" for name in MODELS}
    settings = {"model": str(folders["retro"]), "data": data, "database": _DATABASE, "retriever": address}
    perplexity = evaluate(PerplexityConfig.parse({**settings, "device": "cpu"}))
    models = {name: load(folder, torch.float32) for name, folder in folders.items()}
    config, tokenizer = models["retro"].config, Tokenizer.load(folders["retro"])
    texts = read_texts(data, tokenizer)
    sliding = resolve_sliding(config, None, None, grid=True)
    clusters = cluster(texts, sliding, words=False)
    found = retrieve(texts, config, tokenizer, address, _DATABASE, lambda stage, done, total: None)
    on = token_losses(models["retro"], texts, sliding, found.neighbors)
    overlap, sides = overlaps(texts, found, config.chunk_length), {}
    for name in ("twin", "gpt"):
        alone = token_losses(models[name], texts, sliding, None)
        totals = clusters.totals(alone)
        sides[name] = {
            **clusters.figures(totals),
            "retro_on_minus_this": clusters.difference(clusters.totals(on), totals),
            "overlap": by_overlap(texts, clusters, overlap, {"off": alone, "on": on}, config.chunk_length),
        }
    return {
        "gate_passed": perplexity["gate"]["passed"],
        "bits_per_byte": {
            **{f"retro_{side}": perplexity[side]["bits_per_byte"] for side in ("off", "on", "half", "shuffled")},
            **{name: side["bits_per_byte"] for name, side in sides.items()},
        },
        "parameters": {name: sum(weights.numel() for weights in model.parameters()) for name, model in models.items()},
        "wins_at_the_lowest_overlap": {name: _wins(side["overlap"]) for name, side in sides.items()},
        "raw": {"perplexity": {**perplexity, "model": "retro"}, "gpts": sides},
    }


def _wins(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether the RETRO is better, by more than 3 paired standard errors, where overlap is least."""
    row = next(row for row in rows if row["chunks"])
    value, error = (row["on_minus_off"][f"bits_per_byte{suffix}"] for suffix in ("", "_standard_error"))
    wins = value is not None and error is not None and value < -3 * error
    return {
        "r_at_most": row["r_at_most"],
        "chunks": row["chunks"],
        "bits_per_byte": value,
        "error": error,
        "wins": wins,
    }


def table(result: dict[str, Any]) -> Iterator[str]:
    """Markdown: each side with its bits per byte, then the differences by overlap."""
    perplexity, gpts, parameters = result["raw"]["perplexity"], result["raw"]["gpts"], result["parameters"]
    yield "| model | parameters | nats per token | perplexity | bits per byte |"
    yield "|---|---|---|---|---|"
    rows = [(f"RETRO, {side}", "retro", perplexity[side]) for side in ("off", "on", "half", "shuffled")]
    rows += [(MODELS[name], name, gpts[name]) for name in gpts]
    for label, name, figures in rows:
        cells = [_cell(figures, measure) for measure in ("nats_per_token", "perplexity", "bits_per_byte")]
        yield f"| {label} | {parameters[name]:,} | {' | '.join(cells)} |"
    yield ""
    yield "| r up to | chunks | RETRO OFF | RETRO ON | ON - OFF | ON - twin | ON - GPT of as many parameters |"
    yield "|---|---|---|---|---|---|---|"
    compared = zip(perplexity["overlap"], gpts["twin"]["overlap"], gpts["gpt"]["overlap"], strict=True)
    for own, twin, gpt in compared:
        sides = [own["off"], own["on"], own["on_minus_off"], twin["on_minus_off"], gpt["on_minus_off"]]
        cells = [_cell(side, "bits_per_byte") for side in sides]
        yield f"| {own['r_at_most']:.3f} | {own['chunks']} | {' | '.join(cells)} |"
    yield ""
    yield f"gate: {perplexity['gate']['verdict']}"
    yield from (f"- {reason}" for reason in perplexity["gate"]["reasons"])
    for name, found in result["wins_at_the_lowest_overlap"].items():
        wins = "wins" if found["wins"] else "does not win"
        yield f"- at r up to {found['r_at_most']:g} the RETRO {wins} against the {MODELS[name]}"


def draw_curves(result: dict[str, Any], path: Path) -> None:
    """Training loss of the three models, on the same sequences in the same order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, label in MODELS.items():
        curve = result["raw"]["training"][name]["curve"]
        axis.plot(curve["step"], curve["nats_per_token"], label=f"{label}, {result['parameters'][name]:,} parameters")
    axis.set(xlabel="step", ylabel="training loss, nats per token")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _cell(figures: dict[str, Any], name: str) -> str:
    value, error = figures[name], figures[f"{name}_standard_error"]
    return "-" if value is None else f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _settings(work: Path, name: str, quick: bool) -> list[str]:
    """The shipped configuration's folders are those of a run in the repository's root."""
    source = json.dumps([{"path": str(work / "train.jsonl")}])
    changed = {"out": work / name, "corpus.sources": source, "corpus.tokenizer": work / "tokenizer"}
    if name == "retro":
        changed |= {"retrieval.cache": work / "neighbours", "retrieval.folder": work / "book"}
    if quick:
        changed |= {"steps": 6, "optimiser.warmup_steps": 1, "evaluation.sequences": 4, "log_every": 1}
    return [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]


if __name__ == "__main__":
    sys.exit(main())
