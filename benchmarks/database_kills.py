"""Builds with the real encoder, killed (-9) at random moments and begun again: what comes out is always the same bytes.

python benchmarks/database_kills.py [--kills 60] [--minutes 20] [--documents 2] [--json FILE]

Each build is killed one to three times in each stage, and once at any moment; then it goes on to its end and is compared. It has
passed with so many kills, at least 5 of them in each stage, and no build with other bytes.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import ROOT, environment, figure_lines, run_benchmark

if TYPE_CHECKING:
    from openbook_database.encoder import Encoder

SOURCE = ROOT / "examples" / "factbook" / "2015-11-18.jsonl.zst"
STAGES = ("chunk", "embed", "train-index", "add", "finish")
SEED = 5
ANYWHERE = "anywhere"
LEAST = 5  # kills in each stage


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=20, help="no build begins after so many")
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome")
    options = parser.parse_args(arguments)
    return run_benchmark(
        lambda work: run(options.kills, options.minutes, options.documents, work),
        figure_lines,
        limit_s=int(120 * options.minutes) + 300,
        json_file=options.json,
        passed=lambda result: passed(result, options.kills),
    )


def passed(result: Mapping[str, Any], kills: int) -> bool:
    """Whether there were enough kills everywhere and every build gave the same bytes."""
    enough = result["kills"] >= kills and min(result["by_stage"][stage] for stage in STAGES) >= LEAST
    return enough and not result["different"]


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
    while time.monotonic() - begun < 60 * minutes and (len(killed) < kills or rarest(killed) < LEAST):
        # One build, killed a few times in each stage and once anywhere, goes on to its end and is compared.
        moments = [stage for stage in STAGES for _ in range(lot.randint(1, 3))]
        moments.insert(lot.randrange(len(moments)), ANYWHERE)
        for moment in moments:
            child = start(encoder, out, documents)
            if moment == ANYWHERE or wait_for_stage(out, child, moment):
                time.sleep(lot.uniform(0, sum(seconds.values()) if moment == ANYWHERE else seconds[moment]))
            os.kill(child, signal.SIGKILL)  # without effect on one that has ended
            if wait(child) == -signal.SIGKILL:
                told = [event for event in events(out) if event["pid"] == child and "stage" in event]
                last = told[-1] if told else {"event": "none"}
                within = last["stage"] if last["event"] in ("begin", "progress") else "between"
                killed.append({"asked": moment, "stage": within, "build": len(finished)})
        assert wait(start(encoder, out, documents)) == 0
        finished.append(digest(out) == expected)
        clear(out)
    return {
        "kills": len(killed),
        "by_stage": by_stage(killed),
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


def by_stage(killed: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Kills within each stage, and between two."""
    return dict.fromkeys(STAGES, 0) | dict(Counter(kill["stage"] for kill in killed))


def rarest(killed: Sequence[Mapping[str, Any]]) -> int:
    """Kills within the stage that has had the fewest."""
    return min(by_stage(killed)[stage] for stage in STAGES)


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
