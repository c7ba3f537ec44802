"""The demo from start to end."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from openbook_cli.demo.checker import Checker
from openbook_cli.demo.load import Call, Load, complete, latency, search
from openbook_cli.demo.processes import OPENBOOK, Processes, child_environment
from openbook_cli.demo.questions import Question, grade, load_questions
from openbook_cli.demo.report import print_figures, print_table
from openbook_cli.swap import swap_to, wait_for_routers
from openbook_core.clients import AdminClient, RetrieverClient
from openbook_core.errors import OpenbookError, UnavailableError

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


def run(options: DemoOptions) -> int:
    """Returns the exit code: 0 only if nothing failed, nothing was mixed and no weight changed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the context that stops the services
    begun = time.monotonic()
    sources = {edition: options.editions / f"{edition}.jsonl.zst" for edition in (OLD, NEW)}
    people = options.editions / f"people_{OLD}_{NEW}.jsonl.zst"
    for path in (*sources.values(), people):
        if not path.is_file():
            raise UnavailableError(f"{path} is missing: run from the repository's folder or give --editions")
    questions = load_questions(people, list(sources.values()), options.questions, options.documents)
    _say(f"{len(questions)} questions about {DATABASE}")
    folders = {edition: _build(edition, path, options) for edition, path in sources.items()}
    registry = options.workdir / "registry"
    shutil.rmtree(registry, ignore_errors=True)
    registry.mkdir(parents=True)
    with Processes(options.workdir / "logs") as processes:
        addresses = _start_retrieval(processes, registry)
        with AdminClient(addresses["router"]) as admin:
            ids = {
                edition: admin.register(DATABASE, str(path.absolute())).snapshot for edition, path in folders.items()
            }
            swap_to(admin, DATABASE, ids[OLD])
            _say(f"live: {OLD} (snapshot {ids[OLD][:12]})")
            _say("starting the generation server")
            arguments = ["serve", "generator", "--retriever", addresses["router"], "--database", DATABASE]
            addresses["generator"] = processes.start("generator", arguments, deadline_s=300)
            figures, rounds = _swap_under_load(admin, addresses, ids, questions, Checker(list(folders.values())))
        if options.train_seconds:
            figures["training"] = _train(addresses["router"], sources[OLD], options)
        figures |= {"seconds": round(time.monotonic() - begun, 1), "snapshots": ids, "processes": processes.pids()}
        print_table(questions, rounds)
        print_figures(figures)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False))
            _say(f"figures written to {options.json}")
        if options.keep:
            for name, address in addresses.items():
                print(f"{name:<12} {address}  (pid {processes.pids()[name]})")
            processes.release()
    good = not figures["failed_requests"] and not figures["mixed_replies"]
    good = good and figures["weights_hash_before"] == figures["weights_hash_after"]
    _say(f"{'done' if good else 'FAILED: see the figures above'} in {figures['seconds']} s")
    return 0 if good else 1


def _say(text: str) -> None:
    print(f"[demo] {text}", file=sys.stderr, flush=True)


def _build(edition: str, source: Path, options: DemoOptions) -> Path:
    suffix = f"-first-{options.documents}" if options.documents else ""
    out = options.workdir / "snapshots" / f"{DATABASE}-{edition}{suffix}"
    _say(f"building {out} (left alone if it is there)")
    command = [*OPENBOOK, "db", "build", str(source), "--out", str(out), "--database", DATABASE]
    command += ["--shards", str(SHARDS), "--metadata", "region"]
    if options.documents:
        command += ["--limit-documents", str(options.documents)]
    out.parent.mkdir(parents=True, exist_ok=True)
    if subprocess.run(command, env=child_environment(), stdout=sys.stderr).returncode:
        raise UnavailableError(f"building {out} failed; run it again to go on from where it stopped")
    return out


def _start_retrieval(processes: Processes, registry: Path) -> dict[str, str]:
    _say(f"starting the embedder, {SHARDS} shards and the router")
    addresses = {"embedder": processes.start("embedder", ["serve", "embedder"])}
    for shard in range(SHARDS):
        arguments = ["serve", "retriever", "--role", "shard", "--registry", str(registry)]
        arguments += ["--member-index", str(shard), "--member-count", str(SHARDS)]
        addresses[f"shard-{shard}"] = processes.start(f"shard-{shard}", arguments)
    arguments = ["serve", "retriever", "--role", "router", "--registry", str(registry)]
    addresses["router"] = processes.start("router", [*arguments, "--embedder", addresses["embedder"]])
    return addresses


def _swap_under_load(
    admin: AdminClient, addresses: dict[str, str], ids: dict[str, str], questions: list[Question], checker: Checker
) -> tuple[dict[str, Any], dict[str, list[Call]]]:
    url = addresses["generator"]
    with httpx.Client(timeout=300) as client, RetrieverClient(addresses["router"]) as retriever:
        hash_before = client.get(f"{url}/v1/weights").raise_for_status().json()

        def background_completion(number: int) -> Call:
            return complete(client, url, questions[number % len(questions)].text, max_tokens=4, k=1)

        def background_search(number: int) -> Call:
            return search(retriever, DATABASE, questions[number % len(questions)].text, 4)

        def ask(name: str) -> list[Call]:
            _say(f"asking {len(questions)} questions ({name})")
            return [complete(client, url, question.text, max_tokens=MAX_TOKENS) for question in questions]

        load = Load(background_completion, background_search)
        load.start()
        rounds = {"before": ask("before")}
        window_begin = time.monotonic()
        swap = swap_to(admin, DATABASE, ids[NEW])
        _say(f"swapped live to {NEW}: loaded in {swap['prepare_seconds']} s, moved in {swap['activate_seconds']} s")
        time.sleep(2.0)
        window_end = time.monotonic()
        rounds["after"] = ask("after")
        start = time.perf_counter()
        wait_for_routers(admin, DATABASE, admin.rollback(DATABASE).epoch)
        rollback_seconds = round(time.perf_counter() - start, 3)
        _say(f"rolled back in {rollback_seconds} s")
        rounds["rollback"] = ask("after the rollback")
        _say("waiting for the background load to reach its size")
        load.finish()
        hash_after = client.get(f"{url}/v1/weights").raise_for_status().json()
    calls = [*load.calls, *(call for some in rounds.values() for call in some)]
    errors = [f"{call.kind}: {call.error}" for call in calls if call.error]
    for error in errors[:5]:
        _say(f"failed request: {error}")
    figures = {
        "requests": len(calls),
        "requests_by_kind": {k: sum(c.kind == k for c in calls) for k in ("completion", "search_text")},
        "failed_requests": len(errors),
        "errors": errors[:20],
        "mixed_replies": sum(checker.is_mixed(call) for call in calls if not call.error),
        "swap": swap,
        "rollback_seconds": rollback_seconds,
        "latency": latency(load.calls, window_begin, window_end),
        "weights_hash_before": _hash(hash_before),
        "weights_hash_after": _hash(hash_after),
        "cross_attention": next((call.cross_attention for call in rounds["before"] if not call.error), "unknown"),
        **{
            name: grade([call.answer for call in rounds[name]], questions, live="new" if name == "after" else "old")
            for name in ("before", "after", "rollback")
        },
        "answers": [
            {
                "id": question.id,
                "question": question.text,
                **{name: rounds[name][place].answer for name in rounds},
                "old_answer": question.old_answer,
                "new_answer": question.new_answer,
                "passages": {name: rounds[name][place].titles for name in rounds},
            }
            for place, question in enumerate(questions)
        ],
    }
    return figures, rounds


def _hash(reply: dict[str, Any]) -> str:
    return str(reply["sha256"])


def _train(router: str, corpus: Path, options: DemoOptions) -> dict[str, Any]:
    _say(f"training a tiny RETRO for {options.train_seconds} s with neighbours from the running retriever")
    out = options.workdir / "tiny-retro"
    shutil.rmtree(out, ignore_errors=True)
    command = [*OPENBOOK, "train", "--config", "examples/train/tiny.yaml"]
    settings = {"out": out, "max_seconds": options.train_seconds, "retrieval.address": router}
    settings |= {"retrieval.database": DATABASE}
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    command += ["--set", f"corpus.sources=[{{path: {corpus}}}]"]
    if options.documents:
        command += ["--set", f"corpus.max_documents={options.documents}"]
    done = subprocess.run(command, env=child_environment(), stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise OpenbookError(f"training ended with exit code {done.returncode}; its messages are above")
    summary: dict[str, Any] = json.loads(lines[-1])
    return summary
