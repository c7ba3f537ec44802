"""The Factbook through the cross attention alone: one model, two editions as live databases, nothing in the prompt.

    python benchmarks/factbook_cross_attention.py [--model FOLDER] [--data FOLDER] [--json FILE] [--summary FILE]

The countries are those that the model was not trained on (`openbook_trainer.parts`), the editions those of 2015 and, never
trained on, of 2026. Given passages: the right one alone (k1: copying), beside the same field of another country (k2:
selection), none, another question's. Then each edition is built with the model's tokenizer, one passage a document, made
live in one running retriever, and asked. `--summary` is that of the training run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import ROOT, environment, write_result

from openbook_cli.demo.processes import Processes, leave_on_signals
from openbook_cli.swap import swap_to
from openbook_core.clients import AdminClient
from openbook_core.tokenizer import Tokenizer
from openbook_database.files import write_bytes_atomically
from openbook_model import RetroModel, load, weights_hash
from openbook_trainer.factbook.evaluation import Asker, live_report, oracle_report
from openbook_trainer.factbook.passages import edition_lines
from openbook_trainer.factbook.questions import asked, database_rows
from openbook_trainer.finder import NeighborFinder

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
    parser.add_argument("--model", type=Path, default=ROOT / "examples/factbook/model")
    parser.add_argument("--data", type=Path, default=os.environ.get("OPENBOOK_DATA"), help="holds factbook/")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--summary", type=Path)
    parser.add_argument("--workdir", type=Path, default=Path(".openbook/factbook-cross-attention"))
    parser.add_argument("--given-only", action="store_true", help="no databases: given passages alone")
    options = parser.parse_args()
    if options.data is None:
        parser.error("no --data: give the folder of the data sets, or set OPENBOOK_DATA")
    leave_on_signals()
    result: dict[str, Any] = {"environment": environment()}
    if options.summary:
        result["training"] = json.loads(options.summary.read_text())
    model, tokenizer = load(options.model), Tokenizer.load(options.model)
    before = weights_hash(model)
    editions = {
        name: _edition(options.data / "factbook", name, side, model, tokenizer, options.workdir)
        for name, side in SIDES.items()
    }
    result["given"] = {name: oracle_report(edition.asker) for name, edition in editions.items()}
    if not options.given_only:
        result["live"] = _live(editions, model, tokenizer, options.model, options.workdir)
    result["weights_hash_before"], result["weights_hash_after"] = before, weights_hash(model)
    print("\n".join(_lines(result)))
    if options.json:
        write_result(options.json, result)


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
    shutil.rmtree(registry, ignore_errors=True)
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
    for name, report in result.get("live", {}).items():
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
