"""What every benchmark needs: trials in turns, a result with its circumstances, the memory of a process.

Each benchmark takes `--quick` and `--json FILE`, states its figures in the file's top level, and everything they were
computed from under `raw`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, process_time
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(?P<path>.*)$")
_FIELD = re.compile(r"^(?P<name>\w+): +(?P<kilobytes>\d+) kB$")

Trial = TypeVar("Trial")
Side = TypeVar("Side", bound=Hashable)


def in_turns(
    sides: Mapping[Side, Callable[[], Trial]], rounds: int, *, budget_s: float, least: int = 1
) -> dict[Side, list[Trial]]:
    """The trials of each side: every round runs each once, in the other order than the round before.

    Other work on the machine then disturbs the sides alike. Once there are `least` rounds, none begins that would end
    after `budget_s` seconds if it took as long as those before. `least` is 1 or more.
    """
    begun = monotonic()
    trials: dict[Side, list[Trial]] = {name: [] for name in sides}
    for number in range(rounds):
        if number >= least and (monotonic() - begun) * (number + 1) > budget_s * number:
            break
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            trials[name].append(sides[name]())
    return trials


def run_benchmark(
    measure: Callable[[Path], dict[str, Any]],
    report: Callable[[dict[str, Any]], Iterable[str]],
    *,
    limit_s: int,
    json_file: Path | None,
    plot: Callable[[dict[str, Any]], None] | None = None,
    passed: Callable[[dict[str, Any]], bool] = lambda result: True,
) -> int:
    """Measure in a temporary folder, within `limit_s` seconds; print the report, write the result, draw it.

    Exit code 0 with a result that has `passed`; 1, or 130 for Ctrl-C, without one: nothing is written then.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # services share the cores with their callers
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from openbook_core.errors import OpenbookError

    stop_after(limit_s)
    try:
        with tempfile.TemporaryDirectory(prefix="openbook-bench-") as folder:
            result = measure(Path(folder))
    except (OpenbookError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print("\n".join(report(result)))
    if json_file:
        write_result(json_file, result)
    if plot:
        plot(result)
    return 0 if passed(result) else 1


def figure_lines(result: Mapping[str, Any]) -> list[str]:
    """Each figure on a line; `raw` is left out."""
    return [f"{name:<28} {value}" for name, value in result.items() if name != "raw"]


def stop_after(seconds: int) -> None:
    """Have the main thread raise TimeoutError after so many seconds, and leave in order on SIGTERM."""

    def expire(*_: object) -> None:
        raise TimeoutError(f"the benchmark did not end within {seconds} s; the machine is too busy or too slow for it")

    def leave(*_: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGALRM, expire)
    signal.signal(signal.SIGTERM, leave)
    signal.alarm(seconds)


def processor_s(pid: int | None = None) -> float:
    """Seconds of processor time of a process with all its threads so far; of this one where `pid` is None."""
    if pid is None:
        return process_time()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment() -> dict[str, Any]:
    """Where and on what: date, commit (with `dirty` if files differ from it), processor, cores, load, Python's version."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1m_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """The whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)


@dataclass(frozen=True)
class MappedFiles:
    """Mappings of files below one folder, in bytes: address space, pages present, pages that are a private copy."""

    mapped: int
    resident: int
    private_copy: int


def anonymous_bytes(smaps_rollup: str) -> int:
    """Memory of a process that is no file's, from the text of /proc/PID/smaps_rollup."""
    return _fields(smaps_rollup.splitlines()).get("Anonymous", 0)


def mapped_files(smaps: str, folder: Path) -> MappedFiles:
    """How a process maps the files below `folder`, from the text of /proc/PID/smaps.

    A page of a file that is no longer the file's own counts as a private copy (`Anonymous` of that mapping).
    """
    parts: list[tuple[str, list[str]]] = []
    for line in smaps.splitlines():
        found = _MAPPING.match(line)
        if found:
            parts.append((found["path"].removesuffix(" (deleted)"), []))
        elif parts:
            parts[-1][1].append(line)
    inside = [_fields(lines) for path, lines in parts if path.startswith(f"{folder}/")]
    size, resident, copied = (sum(some.get(key, 0) for some in inside) for key in ("Size", "Rss", "Anonymous"))
    return MappedFiles(size, resident, copied)


def _fields(lines: list[str]) -> dict[str, int]:
    matches = (_FIELD.match(line) for line in lines)
    return {found["name"]: int(found["kilobytes"]) * 1024 for found in matches if found}


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD") or "unknown"
        return f"{commit} dirty" if git("status", "--porcelain") else commit
    except FileNotFoundError:
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    values = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    flags = [flag for flag in _FLAGS if flag in values.get("flags", "").split()]
    return f"{values.get('model name', platform.machine())} ({', '.join(flags) or 'no vector extension known'})"
