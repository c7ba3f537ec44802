"""The factbook's adapter: tuned on two editions, tested on countries left out, one of the editions never trained on.

    python benchmarks/factbook_lora.py [books] [train] [ask] [--limit N] [--workdir FOLDER]

Its parts are those of docs/guides/instruction-tuning.md, by default all of them; what a stopped run left is gone on with.

- books  builds a database of each edition in WORKDIR/books, unless it is there
- train  tunes by examples/train/factbook-sft.yaml with the editions of 2015 and 2021 live; the adapter goes to --adapter
- ask    the test third of the countries, editions of 2015 and 2026, from the live retriever, without and with the adapter

Each answer is a row of OUT-rows.jsonl.zst (see `factbook_answers`), OUT.json holds the figures, OUT-bare.png and
OUT-tuned.png draw them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factbook_answers import answer_rows, by_field, by_place, field_lines, write_rows
from measure import ROOT, environment, write_result

from openbook_cli.demo.processes import Processes, leave_on_signals
from openbook_cli.swap import swap_to
from openbook_core.clients import AdminClient
from openbook_core.weights import DEFAULT_MODEL
from openbook_database.streams import file_digest
from openbook_model.adapter import CONFIG_FILE, WEIGHTS_FILE
from openbook_model.checkpoint import PROMPT_FILE
from openbook_trainer.eval.tasks.table import plot, table_lines

CONFIG = "examples/train/factbook-sft.yaml"
EDITIONS = {"2015": "2015-11-18", "2021": "2021-02-15", "2026": "2026-02-19"}
TRAINED_ON, ASKED = ("2015", "2021"), ("2015", "2026")
PARTS = ("books", "train", "ask")
START_S = 900.0  # other work may be on the machine
TASKS = ("factbook", "factbook-fields")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="override one of training's settings"
    )
    parser.add_argument("--limit", type=int, default=400, help="questions of each task and edition (people: 64 in all)")
    parser.add_argument("--limit-documents", type=int, help="books of the first documents only, for a trial")
    parser.add_argument("--workdir", type=Path, default=ROOT / ".openbook" / "factbook-lora")
    parser.add_argument("--adapter", type=Path, default=ROOT / "examples" / "adapters" / "factbook")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "factbook-lora")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if "OPENBOOK_DATA" not in os.environ:
        parser.error("set OPENBOOK_DATA to the folder of the data sets")
    os.chdir(ROOT)
    leave_on_signals()
    for part in PARTS:
        if part in (options.parts or PARTS):
            {"books": _build, "train": _train, "ask": _ask}[part](options)


def _build(options: argparse.Namespace) -> None:
    limit = ["--limit-documents", str(options.limit_documents)] if options.limit_documents else []
    with Processes(options.workdir / "logs") as processes:
        for year, edition in EDITIONS.items():
            source = str(_data() / "factbook" / f"{edition}.jsonl.zst")
            out = ["--out", str(_book(options.workdir, year)), "--database", f"factbook-{year}"]
            print("\n".join(processes.run(f"db build {year}", ["db", "build", source, *out, *limit])), flush=True)


def _train(options: argparse.Namespace) -> None:
    """Tunes once, or goes on; the summary and where it was made go to WORKDIR/training.json.

    Seconds are those of this process: those of a run that was `resumed` are not all.
    """
    file = options.workdir / "training.json"
    if file.is_file():
        print(f"{file} is there: tuned already", flush=True)
        return
    resumed = (options.workdir / "run" / "checkpoint.pt").is_file()
    where, begun = environment(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with served(options.workdir, TRAINED_ON) as (processes, router):
        settings = [f"out={options.workdir / 'run'}", f"passages.address={router}", *options.set]
        chosen = [part for each in settings for part in ("--set", each)]
        lines = processes.run("train", ["train", "--config", CONFIG, *chosen])
    summary, ended = json.loads(lines[-1]), resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    training = {"environment": where, "threads": os.environ.get("OMP_NUM_THREADS"), "resumed": resumed, **summary}
    training |= {"cpu_seconds_with_services": round(spent, 1), "written": _place(options.adapter)}
    options.adapter.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS_FILE, CONFIG_FILE, PROMPT_FILE):
        shutil.copyfile(options.workdir / "run" / "adapter" / name, options.adapter / name)
    write_result(file, training)
    print(json.dumps(training, indent=1), flush=True)


def _ask(options: argparse.Namespace) -> None:
    where = environment()
    training = json.loads((options.workdir / "training.json").read_text(encoding="utf-8"))
    figures: dict[str, dict[str, Any]] = {}
    with served(options.workdir, ASKED) as (processes, router):
        for run in ("bare", "tuned"):
            parts = [_answers(options, processes, router, run, year) for year in ASKED]
            tasks = {name: task for part in parts for name, task in part["tasks"].items()}
            figures[run] = {**parts[0], "tasks": tasks}
    rows = [
        row
        for run in figures
        for year in ASKED
        for task in TASKS
        for row in answer_rows(_folder(options, run, year), run, f"{task}@{EDITIONS[year]}", _data())
    ]
    rows_file = options.out.with_name(f"{options.out.name}-rows.jsonl.zst")
    write_rows(rows_file, rows)
    weights = options.adapter / WEIGHTS_FILE
    size, digest = file_digest(weights)
    fields = by_field(rows)
    result = {
        "command": " ".join(["make results-lora:", "benchmarks/factbook_lora.py", *sys.argv[1:]]),
        "environment": where,
        "seeds": 1,
        "trained_on": [EDITIONS[year] for year in TRAINED_ON],
        "asked": "the test third of the countries (openbook_trainer.parts)",
        "training": training,
        "adapter": {"file": _place(weights), "bytes": size, "blake3": digest},
        "rows": rows_file.name,
        "fields": fields,
        "places": by_place(rows),
        **figures,
    }
    for run, found in figures.items():
        print("\n".join([run, *table_lines(found)]))
        plot(found, options.out.with_name(f"{options.out.name}-{run}.png"))
    print("\n".join(field_lines(fields)))
    write_result(options.out.with_suffix(".json"), result)


def _answers(options: argparse.Namespace, processes: Processes, router: str, run: str, year: str) -> dict[str, Any]:
    """The figures of one model from one edition, by `openbook eval tasks`."""
    out, edition = _folder(options, run, year), EDITIONS[year]
    figures = out.with_suffix(".json")
    arguments = ["--model", DEFAULT_MODEL, "--tasks", ",".join(f"{task}@{edition}" for task in TASKS), "--part", "test"]
    arguments += ["--sides", "off", "--limit", str(options.limit), "--batch", "16"]
    arguments += ["--database", f"factbook-{year}", "--retriever", router, "--out", str(out), "--json", str(figures)]
    if options.limit_documents:
        arguments += ["--limit-documents", str(options.limit_documents)]
    if run == "tuned":
        arguments += ["--adapter", _place(options.adapter)]
    processes.run(f"{run} {year}", ["eval", "tasks", *arguments])
    found: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
    return found


@contextmanager
def served(workdir: Path, years: tuple[str, ...]) -> Iterator[tuple[Processes, str]]:
    """The processes, and the address of a router under which the books of these years in `workdir` are live."""
    registry = workdir / "registry"
    shutil.rmtree(registry, ignore_errors=True)
    with Processes(workdir / "logs") as processes:
        embedder = processes.start("embedder", ["serve", "embedder", "--port", "0"], deadline_s=START_S)
        arguments = ["serve", "retriever", "--role", "shard", "--registry", str(registry)]
        processes.start("shard", arguments, deadline_s=START_S)
        arguments = ["serve", "retriever", "--role", "router", "--port", "0", "--registry", str(registry)]
        router = processes.start("router", [*arguments, "--embedder", embedder], deadline_s=START_S)
        with AdminClient(router) as admin:
            for year in years:
                folder = str(_book(workdir, year).absolute())
                swap_to(admin, f"factbook-{year}", admin.register(f"factbook-{year}", folder).snapshot)
        yield processes, router


def _data() -> Path:
    return Path(os.environ["OPENBOOK_DATA"])


def _book(workdir: Path, year: str) -> Path:
    return workdir / "books" / year


def _folder(options: argparse.Namespace, run: str, year: str) -> Path:
    return Path(options.workdir) / f"{run}-{year}"


def _place(path: Path) -> str:
    """As seen from the repository, where it is inside."""
    whole = path.absolute()
    return str(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole)


if __name__ == "__main__":
    main()
