"""Models in training, each in a process of its own behind lines of JSON: ours, and retro-pytorch. See `peers/`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from embedder_process import end, tail
from embedder_sides import peer_environment, program

from openbook_core.errors import OpenbookError

PEER = "retro-pytorch"
_HERE = Path(__file__).parent


class Side:
    """A process that answers each line of JSON with one; `about` is its first."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(environment)
            )
        try:
            self.about = self._answer()
        except BaseException:
            end(self._process)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)

    def step(self, count: int = 1) -> dict[str, Any]:
        """`seconds` of each of so many steps, their `cpu_s`, and the `peak_mb` of memory since before the model."""
        return self.ask({"steps": count})

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise OpenbookError(f"a side of the benchmark ended; the end of its log:\n{tail(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def ours(
    model: Mapping[str, Any],
    work: Path,
    log: Path,
    *,
    twin: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
    compiled: bool = False,
) -> Side:
    """The RETRO of these settings, or its GPT twin."""
    spec = {"model": model, "twin": twin, "dtype": dtype, "device": device, "compile": compiled, "work": str(work)}
    return Side([sys.executable, str(_HERE / "training_child.py"), json.dumps(spec)], os.environ, log)


def retro_pytorch(arguments: Mapping[str, Any], work: Path, log: Path, *, dtype: str = "float32") -> Side:
    """retro-pytorch in its own environment, which must be there."""
    spec = {"model": arguments, "dtype": dtype, "work": str(work)}
    script = str(_HERE / "peers" / "retro_pytorch_steps_peer.py")
    return Side([str(program(PEER, "python")), script, json.dumps(spec)], peer_environment(), log)
