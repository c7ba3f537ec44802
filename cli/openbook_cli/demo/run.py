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

import httpx

from openbook_cli.alone import alone_in
from openbook_cli.demo.checker import Checker
from openbook_cli.demo.load import Call, Load, attempt, complete, latency, search
from openbook_cli.demo.processes import Processes, leave_on_signals
from openbook_cli.demo.questions import Question, grade, load_questions
from openbook_cli.demo.registry import check_registry, new_registry
from openbook_cli.demo.report import print_figures, print_table, print_training
from openbook_cli.security_options import dial_of
from openbook_cli.swap import swap_to, wait_for_routers
from openbook_core.clients import AdminClient, RetrieverClient
from openbook_core.errors import ArgumentError, OpenbookError, UnavailableError

DATABASE = "factbook"
OLD, NEW = "2015-11-18", "2026-02-19"
SHARDS = 2
MAX_TOKENS = 24
COMPLETIONS, SEARCHES = 100, 400
WINDOW_S = 10.0
LOAD = "a completion of 8 tokens every 0.8 s and a SearchText every 0.2 s"


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
    _say(f"{len(questions)} questions about {DATABASE}")
    with Processes(options.workdir / "logs") as builds:
        folders = {edition: _build(builds, edition, path, options) for edition, path in sources.items()}
    built = time.monotonic()
    with (
        new_registry(options.registry, options.workdir, keep=options.keep) as registry,
        Processes(options.workdir / "logs") as processes,
    ):
        addresses = _start_retrieval(processes, registry)
        with AdminClient(addresses["router"]) as admin:
            ids = {
                edition: admin.register(DATABASE, str(path.absolute())).snapshot for edition, path in folders.items()
            }
            swap_to(admin, DATABASE, ids[OLD])
            _say(f"live: {OLD} (snapshot {ids[OLD][:12]}); starting the generation server")
            arguments = ["serve", "generator", "--port", "0", "--retriever", addresses["router"]]
            if options.adapter:
                arguments += ["--adapter", str(options.adapter)]
                _say(f"the model's adapter: {options.adapter.name} (--no-adapter goes without)")
            addresses["generator"] = processes.start("generator", [*arguments, "--database", DATABASE], deadline_s=300)
            figures, rounds = _swap_under_load(admin, addresses, ids, questions, Checker(list(folders.values())))
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
    by_kind = figures["requests_by_kind"]
    good = good and by_kind["completion"] >= COMPLETIONS and by_kind["search_text"] >= SEARCHES
    _say(f"{'done' if good else 'FAILED: see the figures above'} in {figures['seconds']} s")
    return 0 if good else 1


def _say(text: str) -> None:
    print(f"[demo] {text}", file=sys.stderr, flush=True)


def _write(figures: dict[str, Any], path: Path | None) -> None:
    if path:
        partial = path.with_name(path.name + ".tmp")
        partial.write_text(json.dumps(figures, indent=1, ensure_ascii=False))
        os.replace(partial, path)
        _say(f"figures written to {path}")


def _build(processes: Processes, edition: str, source: Path, options: DemoOptions) -> Path:
    suffix = f"-first-{options.documents}" if options.documents else ""
    out = options.workdir / "snapshots" / f"{DATABASE}-{edition}{suffix}"
    _say(f"building {out} (left alone if it is there)")
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


def _start_retrieval(processes: Processes, registry: str) -> dict[str, str]:
    _say(f"starting the embedder, {SHARDS} shards and the router")
    addresses = {"embedder": processes.start("embedder", ["serve", "embedder", "--port", "0"])}
    for shard in range(SHARDS):
        arguments = ["serve", "retriever", "--role", "shard", "--registry", registry]
        arguments += ["--member-index", str(shard), "--member-count", str(SHARDS)]
        addresses[f"shard-{shard}"] = processes.start(f"shard-{shard}", arguments)
    arguments = ["serve", "retriever", "--role", "router", "--port", "0", "--registry", registry]
    addresses["router"] = processes.start("router", [*arguments, "--embedder", addresses["embedder"]])
    return addresses


def _swap_under_load(
    admin: AdminClient, addresses: dict[str, str], ids: dict[str, str], questions: list[Question], checker: Checker
) -> tuple[dict[str, Any], dict[str, list[Call]]]:
    url, dial = addresses["generator"], dial_of({})
    with httpx.Client(timeout=300, **dial.http(url)) as client, RetrieverClient(addresses["router"]) as retriever:

        def background_completion(number: int) -> Call:
            return complete(client, url, questions[number % len(questions)].text, max_tokens=8)

        def background_search(number: int) -> Call:
            return search(retriever, DATABASE, questions[number % len(questions)].text, 4)

        def ask(name: str) -> list[Call]:
            _say(f"asking {len(questions)} questions ({name})")
            return [
                attempt("question", lambda text=question.text: complete(client, url, text, max_tokens=MAX_TOKENS))  # type: ignore[misc]
                for question in questions
            ]

        hash_before = _weights_hash(client, url)
        load = Load(
            {
                "completion": (background_completion, COMPLETIONS, 0.8),
                "search_text": (background_search, SEARCHES, 0.2),
            }
        )
        load.start()
        rounds = {"before": ask("before")}
        quiet, moving = [], []
        quiet.append(_pass_time())
        start = time.monotonic()
        swap = swap_to(admin, DATABASE, ids[NEW])
        _say(f"swapped live to {NEW}: loaded in {swap['prepare_seconds']} s, moved in {swap['activate_seconds']} s")
        moving.append(_pass_time(start))
        rounds["after"] = ask("after")
        quiet.append(_pass_time())
        start = time.monotonic()
        wait_for_routers(admin, DATABASE, admin.rollback(DATABASE).epoch)
        rollback_seconds = round(time.monotonic() - start, 3)
        _say(f"rolled back in {rollback_seconds} s")
        moving.append(_pass_time(start))
        rounds["rollback"] = ask("after the rollback")
        _say("waiting for the background load to reach its size")
        load.finish()
        hash_after = _weights_hash(client, url)
    calls = [*load.calls, *(call for some in rounds.values() for call in some)]
    errors = [f"{call.kind}: {call.error}" for call in calls if call.error]
    for error in errors[:5]:
        _say(f"failed request: {error}")
    figures = {
        "requests": len(calls),
        "requests_by_kind": {kind: sum(call.kind == kind for call in load.calls) for kind in load.kinds}
        | {"question": sum(len(some) for some in rounds.values())},
        "failed_requests": len(errors),
        "errors": errors[:20],
        "mixed_replies": sum(checker.is_mixed(call) for call in calls if not call.error),
        "swap": swap,
        "rollback_seconds": rollback_seconds,
        "load": LOAD,
        "latency": latency(load.calls, {"during_swap_and_rollback": moving, "outside": quiet}),
        "weights_hash_before": hash_before,
        "weights_hash_after": hash_after,
        "cross_attention": next((call.cross_attention for call in rounds["before"] if not call.error), "unknown"),
        **{
            name: grade([call.answer for call in rounds[name]], questions, live="new" if name == "after" else "old")
            for name in rounds
        },
        "answers": [
            {
                "id": question.id,
                "question": question.text,
                **{name: rounds[name][place].answer for name in rounds},
                "old_answer": question.old_answer,
                "new_answer": question.new_answer,
                "passages": {name: rounds[name][place].shown for name in rounds},
            }
            for place, question in enumerate(questions)
        ],
    }
    return figures, rounds


def _pass_time(start: float | None = None) -> tuple[float, float]:
    """A window of WINDOW_S seconds, from `start` (by default now), with only the background load in it."""
    begin = time.monotonic() if start is None else start
    time.sleep(max(0.0, begin + WINDOW_S - time.monotonic()))
    return begin, time.monotonic()


def _weights_hash(client: httpx.Client, url: str) -> str:
    return str(client.get(f"{url}/v1/weights").raise_for_status().json()["sha256"])


def _train(processes: Processes, router: str, corpus: Path, options: DemoOptions) -> dict[str, Any]:
    _say(f"training a tiny RETRO for {options.train_seconds} s with neighbours from the running retriever")
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
