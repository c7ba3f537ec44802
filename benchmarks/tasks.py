"""Questions with and without the book: the bare model, the same with the factbook's adapter, and retrofitted.

    python benchmarks/tasks.py [--quick] [--limit N] [--workdir FOLDER]

Asks Natural Questions, NQ-open and SQuAD by `openbook eval tasks`; the factbook's rows are those of factbook-lora.json,
which `benchmarks/factbook_lora.py` makes. The retrofit is trained here by examples/train/retrofit.yaml, with that
script's book of 2015 live, and is asked with the cross attention off and on. Writes OUT.json and a picture of each run.
A run that was stopped is gone on with. `--quick` asks a few questions, of the first documents, and writes to the
working folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from factbook_lora import served
from measure import ROOT, environment, write_result

from openbook_cli.demo.processes import Processes, leave_on_signals
from openbook_core.weights import DEFAULT_MODEL
from openbook_trainer.eval.tasks.table import plot, table_lines

ADAPTER = "examples/adapters/factbook"
FACTBOOK = ("factbook@2026-02-19", "factbook-fields@2026-02-19")
# Each run here, and what it is called in factbook-lora.json.
RUNS = {"bare": "bare", "adapter": "tuned"}
RETROFIT, RETROFIT_STEPS, RETROFIT_BOOK = "retrofit", 150, "2015"
QUICK_DOCUMENTS, QUICK_QUESTIONS, QUICK_STEPS = 20, 2, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a trial: a few questions, of the first documents")
    parser.add_argument("--tasks", default="nq,nq-open,squad")
    parser.add_argument("--limit", type=int, default=150, help="questions of each task")
    parser.add_argument("--workdir", type=Path, help=".openbook/tasks, or .openbook/tasks-quick")
    parser.add_argument("--out", type=Path, help="docs/results/tasks, or WORKDIR/tasks")
    parser.add_argument("--lora", type=Path, default=ROOT / "docs" / "results" / "factbook-lora.json")
    parser.add_argument(
        "--lora-workdir", type=Path, default=ROOT / ".openbook" / "factbook-lora", help="with its books"
    )
    options = parser.parse_args()
    if "OPENBOOK_DATA" not in os.environ:
        parser.error("set OPENBOOK_DATA to the folder of the data sets")
    os.chdir(ROOT)
    leave_on_signals()
    workdir = options.workdir or ROOT / ".openbook" / ("tasks-quick" if options.quick else "tasks")
    out = options.out or (workdir / "tasks" if options.quick else ROOT / "docs" / "results" / "tasks")
    size = ["--limit", str(QUICK_QUESTIONS if options.quick else options.limit)]
    size += ["--limit-documents", str(QUICK_DOCUMENTS)] if options.quick else []
    where = environment()
    training = _retrofit(workdir, options.lora_workdir, QUICK_STEPS if options.quick else RETROFIT_STEPS)
    asked = {run: _figures(run, options.tasks, size, workdir) for run in (*RUNS, RETROFIT)}
    result = {
        "command": " ".join(["make results-tasks:", "benchmarks/tasks.py", *sys.argv[1:]]),
        "environment": where,
        "factbook": f"the factbook's rows are copies of {options.lora.name}",
        **with_factbook(asked, json.loads(options.lora.read_text(encoding="utf-8"))),
        RETROFIT: {**asked[RETROFIT], "training": training},
    }
    for run in asked:
        print("\n".join([run, *table_lines(result[run])]))
        plot(result[run], out.with_name(f"{out.name}-{run}.png"))
    write_result(out.with_suffix(".json"), result)


def with_factbook(asked: dict[str, Any], lora: dict[str, Any]) -> dict[str, Any]:
    """Each run with the factbook's tasks of the last edition after its own.

    Raises ValueError where the factbook was asked of another model or adapter than the rest.
    """
    merged = {}
    for run, name in RUNS.items():
        figures, factbook = asked[run], lora[name]
        if figures["weights_hash"] != factbook["weights_hash"]:
            raise ValueError(f"{run}: the factbook was asked of other weights than the other tasks; run both again")
        merged[run] = {**figures, "tasks": {**figures["tasks"], **{task: factbook["tasks"][task] for task in FACTBOOK}}}
    return merged


def _retrofit(workdir: Path, lora_workdir: Path, steps: int) -> dict[str, Any]:
    """The training's summary; the model is in WORKDIR/run/model. A run that was stopped is gone on with."""
    file = workdir / "training.json"
    if not file.is_file():
        settings = {
            "out": workdir / "run",
            "steps": steps,
            "max_seconds": "null",
            "retrieval.database": f"factbook-{RETROFIT_BOOK}",
        }
        with served(lora_workdir, (RETROFIT_BOOK,)) as (processes, router):
            settings["retrieval.address"] = router
            chosen = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
            lines = processes.run("retrofit", ["train", "--config", "examples/train/retrofit.yaml", *chosen])
        summary = json.loads(lines[-1])
        write_result(file, {name: value for name, value in summary.items() if name not in ("checkpoint", "model")})
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _figures(run: str, tasks: str, size: list[str], workdir: Path) -> dict[str, Any]:
    file = workdir / f"{run}.json"
    model = os.path.relpath(workdir / "run" / "model") if run == RETROFIT else DEFAULT_MODEL
    arguments = ["--model", model, "--tasks", tasks, *size, "--batch", "16", "--books", str(workdir / "books")]
    if run == "adapter":
        arguments += ["--adapter", ADAPTER]
    with Processes(workdir / "logs") as processes:
        processes.run(f"tasks {run}", ["eval", "tasks", *arguments, "--out", str(workdir / run), "--json", str(file)])
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
