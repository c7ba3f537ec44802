"""Builds with the real encoder, killed (-9) at random moments and begun again: what comes out is always the same bytes.

python benchmarks/database_kills.py [--kills 30] [--minutes 8] [--documents 4] [--json FILE]

Half of the moments are random in the whole build, half in a stage drawn by lot, so that the short stages have their share.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import ROOT, environment, figure_lines, run_benchmark

if TYPE_CHECKING:
    from openbook_database.encoder import Encoder

SOURCE = ROOT / "examples" / "factbook" / "2015-11-18.jsonl.zst"
STAGES = ("chunk", "embed", "train-index", "add", "finish")
SEED = 5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=8, help="no kill after so many")
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome")
    options = parser.parse_args(arguments)
    return run_benchmark(
        lambda work: run(options.kills, options.minutes, options.documents, work),
        figure_lines,
        limit_s=int(120 * options.minutes) + 300,
        json_file=options.json,
        passed=lambda result: bool(result["kills"]) and not result["different"],
    )


def run(kills: int, minutes: float, documents: int, work: Path) -> dict[str, Any]:
    """{figures, raw}."""
    from openbook_core.weights import DEFAULT_EMBEDDER
    from openbook_embedder.engine import EncoderEngine

    circumstances = environment()
    # Each build is a fork of this process: with one thread, what was loaded is whole in it.
    encoder = EncoderEngine.load(DEFAULT_EMBEDDER, dtype="float32", threads=1)
    reference = work / "reference"
    assert wait(start(encoder, reference, documents)) == 0
    expected = digest(reference)
    seconds = {event["stage"]: event["seconds"] for event in events(reference) if event["event"] == "end"}
    lot = random.Random(SEED)
    killed: list[dict[str, Any]] = []
    finished: list[bool] = []
    out, begun = work / "killed", time.monotonic()
    while len(killed) < kills and time.monotonic() - begun < 60 * minutes:
        stage = lot.choice(STAGES) if lot.random() < 0.5 else None
        if any(event["event"] == "end" and event["stage"] == stage for event in events(out)):
            clear(out)  # it has that stage behind it
        child = start(encoder, out, documents)
        begins = stage is None or wait_for_stage(out, child, stage)
        if begins:
            time.sleep(lot.uniform(0, sum(seconds.values()) if stage is None else seconds[stage]))
        os.kill(child, signal.SIGKILL)  # without effect on one that has ended
        if wait(child) == -signal.SIGKILL:
            told = [event for event in events(out) if event["pid"] == child]
            last = told[-1] if told else {"event": "none"}
            killed.append({"asked": stage, "stage": last.get("stage", "between"), "event": last["event"]})
        if out.exists():
            finished.append(digest(out) == expected)
            clear(out)
    assert wait(start(encoder, out, documents)) == 0
    finished.append(digest(out) == expected)
    return {
        "kills": len(killed),
        "by_stage": dict(Counter(kill["stage"] for kill in killed)),
        "builds_finished": len(finished),
        "different": finished.count(False),
        "chunks": next(event["total"] for event in events(reference) if event.get("stage") == "embed"),
        "seconds_without_a_kill": round(sum(seconds.values()), 2),
        "raw": {
            "command": f"python benchmarks/database_kills.py --kills {kills} --minutes {minutes:g} --documents {documents}",
            **circumstances,
            "stage_seconds": seconds,
            "kills": killed,
        },
    }


def start(encoder: Encoder, out: Path, documents: int) -> int:
    """The process id of a build."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        from openbook_core.tokenizer import Tokenizer
        from openbook_core.weights import DEFAULT_MODEL
        from openbook_database.build.run import build_snapshot
        from openbook_database.build.settings import BuildSettings

        settings = BuildSettings(
            limit_documents=documents, shards=2, index="IVF16,SQ8", embed_block=32, chunk_block=64, train_sample=512
        )
        tokenizer = Tokenizer.load(DEFAULT_MODEL)
        build_snapshot([SOURCE], out, database="factbook", tokenizer=tokenizer, encoder=encoder, settings=settings)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for_stage(out: Path, child: int, stage: str) -> bool:
    """Whether the build has begun a stage before it ended."""
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if any(event["pid"] == child and event.get("stage") == stage for event in events(out)):
            return True
        time.sleep(0.005)
    return False


def events(out: Path) -> list[dict[str, Any]]:
    log = out.with_name(out.name + ".log.jsonl")
    # The last line may be half written.
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]] if log.exists() else []


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def clear(out: Path) -> None:
    for path in (out, out.with_name(out.name + ".building")):
        shutil.rmtree(path, ignore_errors=True)
    out.with_name(out.name + ".log.jsonl").unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
