"""The demo from start to end."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook_cli.alone import alone_in
from openbook_cli.demo import column
from openbook_cli.demo.checker import Checker
from openbook_cli.demo.load import complete
from openbook_cli.demo.processes import Processes, leave_on_signals
from openbook_cli.demo.questions import load_questions
from openbook_cli.demo.registry import check_registry, new_registry
from openbook_cli.demo.report import print_figures, print_table, print_training
from openbook_cli.demo.rounds import Column, say, swap_under_load
from openbook_cli.swap import swap_to
from openbook_core.clients import AdminClient, EmbedderClient
from openbook_core.errors import ArgumentError, OpenbookError, UnavailableError

DATABASE = "factbook"
OLD, NEW = "2015-11-18", "2026-02-19"
SHARDS = 2
MAX_TOKENS = 24


@dataclass(frozen=True)
class DemoOptions:
    """See `openbook demo --help`."""

    questions: int
    documents: int | None
    json: Path | None
    keep: bool
    train_seconds: int
    editions: Path
    workdir: Path
    train_config: Path
    registry: str
    adapter: Path | None = None
    reader: Path | None = None


def run(options: DemoOptions) -> int:
    """Returns the exit code: 0 only if nothing failed, nothing was mixed and no weight changed."""
    leave_on_signals()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    if options.train_seconds and not options.train_config.is_file():
        raise UnavailableError(
            f"{options.train_config} is missing: run from the repository's folder or give --train-config"
        )
    if options.adapter and not options.adapter.is_dir():
        raise UnavailableError(
            f"{options.adapter} is missing: run from the repository's folder, give --adapter, or --no-adapter"
        )
    if options.reader and not options.reader.is_dir():
        raise UnavailableError(
            f"{options.reader} is missing: run from the repository's folder, give --cross-attention-model, or "
            "--no-cross-attention"
        )
    check_registry(options.registry)
    with alone_in(options.workdir, "demo", "--workdir"):
        return _run(options)


def _run(options: DemoOptions) -> int:
    begun = time.monotonic()
    sources = {edition: options.editions / f"{edition}.jsonl.zst" for edition in (OLD, NEW)}
    people = options.editions / f"people_{OLD}_{NEW}.jsonl.zst"
    for path in (*sources.values(), people):
        if not path.is_file():
            raise UnavailableError(f"{path} is missing: run from the repository's folder or give --editions")
    questions = load_questions(people, list(sources.values()), options.questions, options.documents)
    if not questions:
        raise ArgumentError(
            f"no question is about the first {options.documents} documents; take more", field="documents"
        )
    say(f"{len(questions)} questions about {DATABASE}")
    with Processes(options.workdir / "logs") as builds:
        folders = {edition: _build(builds, edition, path, options) for edition, path in sources.items()}
        passages = _build_passages(builds, sources, options.reader, options) if options.reader else {}
    built = time.monotonic()
    with (
        new_registry(options.registry, options.workdir, keep=options.keep) as registry,
        Processes(options.workdir / "logs") as processes,
    ):
        addresses = _start_retrieval(processes, registry)
        with AdminClient(addresses["router"]) as admin:
            ids = _register(admin, DATABASE, folders)
            say(f"live: {OLD} (snapshot {ids[OLD][:12]}); starting the generation server")
            arguments = ["serve", "generator", "--port", "0", "--retriever", addresses["router"]]
            adapted = ["--adapter", str(options.adapter)] if options.adapter else []
            if options.adapter:
                say(f"the model's adapter: {options.adapter.name} (--no-adapter goes without)")
            served = [*arguments, "--database", DATABASE, *adapted]
            addresses["generator"] = processes.start("generator", served, deadline_s=300)
            checker = Checker([*folders.values()])
            prompted = Column(DATABASE, (ids[OLD], ids[NEW]), addresses["generator"], complete, MAX_TOKENS, checker)
            second = None
            if options.reader:
                found = _register(admin, column.DATABASE, passages)
                served = [*arguments, "--database", column.DATABASE, "--model", str(options.reader)]
                addresses["reader"] = processes.start("reader", [*served, "--dtype", "float32"])
                texts = [question.text for question in questions]
                with EmbedderClient(addresses["embedder"]) as embedder:
                    near = column.NeighborChecker([*passages.values()], texts, embedder.embed(texts, "query").vectors)
                moved = found[OLD], found[NEW]
                second = Column(column.DATABASE, moved, addresses["reader"], column.read, column.MAX_TOKENS, near)
            figures, rounds = swap_under_load(admin, addresses["router"], prompted, second, questions)
        figures["adapter"] = options.adapter.name if options.adapter else None
        figures |= {"snapshots": ids, "build_seconds": round(built - begun, 1)}
        print_table(questions, rounds)
        print_figures(figures)
        _write(figures, options.json)
        if options.train_seconds:
            figures["training"] = _train(processes, addresses["router"], sources[OLD], options)
            print_training(figures["training"])
        figures["seconds"] = round(time.monotonic() - begun, 1)
        _write(figures, options.json)
        if options.keep:
            for name, address in addresses.items():
                print(f"{name:<12} {address}  (pid {processes.pids()[name]})")
            processes.release()
    good = not figures["failed_requests"] and not figures["mixed_replies"]
    good = good and figures["weights_hash_before"] == figures["weights_hash_after"]
    good = good and all(figures["requests_by_kind"][kind] >= count for kind, count in figures["least_requests"].items())
    if options.reader:
        reader = figures["second_column"]
        good = good and reader["weights_hash_before"] == reader["weights_hash_after"]
        good = good and reader["cross_attention"] == "on"
    say(f"{'done' if good else 'FAILED: see the figures above'} in {figures['seconds']} s")
    return 0 if good else 1


def _write(figures: dict[str, Any], path: Path | None) -> None:
    if path:
        partial = path.with_name(path.name + ".tmp")
        partial.write_text(json.dumps(figures, indent=1, ensure_ascii=False))
        os.replace(partial, path)
        say(f"figures written to {path}")


def _build(processes: Processes, edition: str, source: Path, options: DemoOptions) -> Path:
    suffix = f"-first-{options.documents}" if options.documents else ""
    out = options.workdir / "snapshots" / f"{DATABASE}-{edition}{suffix}"
    say(f"building {out} (left alone if it is there)")
    arguments = ["db", "build", str(source), "--out", str(out), "--database", DATABASE]
    arguments += ["--shards", str(SHARDS), "--metadata", "region"]
    if options.documents:
        arguments += ["--limit-documents", str(options.documents)]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        lines = processes.run(f"db build {edition}", arguments)
    except OpenbookError as error:
        raise UnavailableError(
            f"{error.message}; run it again to go on from where it stopped, or delete {out.parent} to begin anew"
        ) from None
    print("\n".join(lines), file=sys.stderr, flush=True)
    return out


def _build_passages(
    processes: Processes, sources: dict[str, Path], model: Path, options: DemoOptions
) -> dict[str, Path]:
    """The same editions as the model with cross attention reads them: a passage a document, in its tokens."""
    folder, suffix = options.workdir / "snapshots", f"-first-{options.documents}" if options.documents else ""
    folders = {}
    for edition, source in sources.items():
        out = folder / f"{column.DATABASE}-{edition}{suffix}"
        say(f"building {out} (left alone if it is there)")
        file = out.with_suffix(".jsonl")
        column.write_passages(source, model, file, options.documents)
        arguments = ["db", "build", str(file), "--out", str(out), "--database", column.DATABASE]
        arguments += ["--tokenizer", str(model), "--shards", str(SHARDS)]
        processes.run(f"db build {edition}, passages", arguments)
        folders[edition] = out
    return folders


def _register(admin: AdminClient, database: str, folders: dict[str, Path]) -> dict[str, str]:
    """The snapshots by edition; the old one is live."""
    ids = {edition: admin.register(database, str(path.absolute())).snapshot for edition, path in folders.items()}
    swap_to(admin, database, ids[OLD])
    return ids


def _start_retrieval(processes: Processes, registry: str) -> dict[str, str]:
    say(f"starting the embedder, {SHARDS} shards and the router")
    addresses = {"embedder": processes.start("embedder", ["serve", "embedder", "--port", "0"])}
    for shard in range(SHARDS):
        arguments = ["serve", "retriever", "--role", "shard", "--registry", registry]
        arguments += ["--member-index", str(shard), "--member-count", str(SHARDS)]
        addresses[f"shard-{shard}"] = processes.start(f"shard-{shard}", arguments)
    arguments = ["serve", "retriever", "--role", "router", "--port", "0", "--registry", registry]
    addresses["router"] = processes.start("router", [*arguments, "--embedder", addresses["embedder"]])
    return addresses


def _train(processes: Processes, router: str, corpus: Path, options: DemoOptions) -> dict[str, Any]:
    say(f"training a tiny RETRO for {options.train_seconds} s with neighbours from the running retriever")
    out = options.workdir / "tiny-retro"
    shutil.rmtree(out, ignore_errors=True)
    settings: dict[str, Any] = {"out": str(out), "max_seconds": options.train_seconds, "retrieval.address": router}
    settings |= {"retrieval.database": DATABASE, "corpus.sources": [{"path": str(corpus)}]}
    if options.documents:
        settings["corpus.max_documents"] = options.documents
    arguments = ["train", "--config", str(options.train_config)]
    for key, value in settings.items():
        arguments += ["--set", f"{key}={json.dumps(value)}"]
    summary: dict[str, Any] = json.loads(processes.run("training", arguments)[-1])
    return summary
