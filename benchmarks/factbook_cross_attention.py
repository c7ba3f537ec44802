"""The Factbook through the cross attention alone: one model, two editions as live databases, nothing in the prompt.

    python benchmarks/factbook_cross_attention.py [--set A.B=VALUE] [--model FOLDER] [--out FILE] [--evaluate-only]

Trains with the shipped configuration (a run that was stopped is gone on with), keeps the weights in bfloat16 in
examples/factbook/model, and writes what they answer to docs/results/factbook-cross-attention.json with its curve (.png).

The countries asked about are those that it was not trained on (`openbook_trainer.parts`), the editions those of 2015 and,
never trained on, of 2026. Given passages: the right one alone (k1: copying), beside the same field of another country (k2:
selection), none, another question's. Then each edition is built with the model's tokenizer, one passage a document, made
live in one running retriever, and asked.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import ROOT, environment, write_result

from openbook_cli.demo.processes import Processes, leave_on_signals
from openbook_cli.swap import swap_to
from openbook_core.clients import AdminClient
from openbook_core.config import load_config
from openbook_core.tokenizer import Tokenizer
from openbook_database.files import write_bytes_atomically
from openbook_model import RetroModel, load, save, weights_hash
from openbook_trainer.factbook.evaluation import Asker, live_report, oracle_report
from openbook_trainer.factbook.passages import edition_lines
from openbook_trainer.factbook.questions import asked, database_rows
from openbook_trainer.finder import NeighborFinder
from openbook_trainer.recall.config import RecallConfig
from openbook_trainer.recall.report import figures_of, plot

CONFIG = "examples/train/factbook-cross-attention.yaml"
DATABASE = "factbook"
SIDES = {"2015-11-18": "old", "2026-02-19": "new"}


@dataclass(frozen=True)
class Edition:
    """Its questions, and the file and folder of its database."""

    asker: Asker
    passages: Path
    snapshot: Path
    documents: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override one setting")
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "factbook" / "model")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "factbook-cross-attention")
    parser.add_argument("--evaluate-only", action="store_true", help="ask the weights that are in --model")
    options = parser.parse_args()
    if "OPENBOOK_DATA" not in os.environ:
        parser.error("set OPENBOOK_DATA to the folder of the data sets")
    leave_on_signals()
    where = environment()
    config, _ = load_config(RecallConfig, ROOT / CONFIG, options.set)
    if not options.evaluate_only:
        settings = [part for each in options.set for part in ("--set", each)]
        subprocess.run(
            [sys.executable, "-m", "openbook_cli", "train", "--config", CONFIG, *settings], cwd=ROOT, check=True
        )
        trained = config.out / "model"
        save(load(trained, torch.bfloat16), options.model, trained)
    asking = _ask(options.model, Path(os.path.expandvars(config.source.folder)), config.out / "books")
    figures = figures_of(config, _as_books(asking))
    plot(figures, options.out.with_suffix(".png"))
    del figures["live"]
    command = " ".join(["make results-factbook:", "benchmarks/factbook_cross_attention.py", *sys.argv[1:]])
    write_result(options.out.with_suffix(".json"), {"command": command, "environment": where, **asking, **figures})
    print("\n".join(_lines(asking)))


def _ask(folder: Path, data: Path, workdir: Path) -> dict[str, Any]:
    model, tokenizer = load(folder), Tokenizer.load(folder)
    before = weights_hash(model)
    editions = {name: _edition(data, name, side, model, tokenizer, workdir) for name, side in SIDES.items()}
    given = {name: oracle_report(edition.asker) for name, edition in editions.items()}
    live = _live(editions, model, tokenizer, folder, workdir)
    hashes = {"weights_hash_before": before, "weights_hash_after": weights_hash(model)}
    return {"given": given, "live_editions": live, **hashes}


def _as_books(asking: dict[str, Any]) -> dict[str, Any]:
    """What people questions gave, as `recall.report.plot` draws it."""
    live = [each["people"] for each in asking["live_editions"].values()]
    given = asking["given"][min(SIDES)]
    return {
        "books": [{"matching": each["exact"], "old": each["stale"], "retrieved": each["right_found"]} for each in live],
        **{how: given[how]["people"]["exact"] for how in ("none", "shuffled")},
    }


def _edition(data: Path, name: str, side: str, model: RetroModel, tokenizer: Tokenizer, workdir: Path) -> Edition:
    lines = edition_lines(data / f"{name}.jsonl.zst")
    file = data / f"qa_{min(SIDES)}_{max(SIDES)}.jsonl.zst"
    rows = list(database_rows(lines, tokenizer, model.config.chunk_length))
    passages = workdir / f"{name}.jsonl"
    passages.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(passages, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    asker = Asker(model, tokenizer, list(asked(file, side, lines, "test")))
    return Edition(asker, passages, workdir / f"snapshot-{name}", len(rows))


def _live(
    editions: dict[str, Edition], model: RetroModel, tokenizer: Tokenizer, folder: Path, workdir: Path
) -> dict[str, Any]:
    """Both editions in one retriever, swapped under the same client and weights."""
    report: dict[str, Any] = {}
    registry = workdir / "registry"
    for made in (registry, *(edition.snapshot for edition in editions.values())):
        shutil.rmtree(made, ignore_errors=True)
    with Processes(workdir / "logs") as processes:
        for name, edition in editions.items():
            arguments = ["db", "build", str(edition.passages), "--out", str(edition.snapshot), "--database", DATABASE]
            processes.run(f"db build {name}", [*arguments, "--tokenizer", str(folder)])
        embedder = processes.start("embedder", ["serve", "embedder", "--port", "0"])
        processes.start("shard", ["serve", "retriever", "--role", "shard", "--registry", str(registry)])
        arguments = ["serve", "retriever", "--role", "router", "--port", "0", "--registry", str(registry)]
        router = processes.start("router", [*arguments, "--embedder", embedder])
        with AdminClient(router) as admin:
            for name, edition in editions.items():
                snapshot = admin.register(DATABASE, str(edition.snapshot.absolute())).snapshot
                swap = swap_to(admin, DATABASE, snapshot)
                with closing(NeighborFinder(router, DATABASE, "", model.config, tokenizer)) as finder:
                    answers = live_report(edition.asker, finder)
                report[name] = {"snapshot": snapshot, "swap": swap, "documents": edition.documents, **answers}
    return report


def _lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, report in result["given"].items():
        for how in ("k1", "k2", "none", "shuffled"):
            lines += [_line(f"{name} given {how}", group, each) for group, each in report[how].items()]
    for name, report in result["live_editions"].items():
        lines += [
            _line(f"{name} live", group, each)
            for group, each in report.items()
            if isinstance(each, dict) and "exact" in each
        ]
    return lines


def _line(what: str, group: str, each: dict[str, Any]) -> str:
    figures = "  ".join(
        f"{name} {each[name]:.3f}" for name in ("exact", "right", "stale", "right_found") if name in each
    )
    return f"{what:<28} {group:<8} {each['questions']:>4} questions  {figures}"


if __name__ == "__main__":
    main()
