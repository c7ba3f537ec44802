"""Whom the embedder is measured against, each in processes of its own: sentence-transformers and infinity.

`make bench-peers` builds their environments in `peers_folder()`. A peer is started once for each of POLICIES, since what
its threads do while they wait decides much of its speed; whoever it is not the turn of is stopped (SIGSTOP), since
threads that poll would take the others' cores.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from embedder_process import end, tail
from numpy.typing import NDArray

from openbook_core.errors import NotFoundError, OpenbookError, UnavailableError

SENTENCE_TRANSFORMERS, INFINITY = "sentence-transformers", "infinity"
PEERS = (SENTENCE_TRANSFORMERS, INFINITY)
_SCRIPT = Path(__file__).parent / "peers" / "sentence_transformers_peer.py"
_START_S = 600.0
# Values of OMP_WAIT_POLICY; "default" leaves it unset.
POLICIES = ("default", "active", "passive")
# What sentence-transformers takes where nothing is said.
LIBRARY_BATCH, LIBRARY_DTYPE = 32, "float32"


def peers_folder() -> Path:
    """OPENBOOK_PEERS, else openbook/peers in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("OPENBOOK_PEERS") or cache / "openbook" / "peers")


def require_peers(names: Sequence[str]) -> None:
    """Raises NotFoundError for a peer whose environment is not built."""
    missing = [name for name in names if not program(name, "python").exists()]
    if missing:
        raise NotFoundError(
            f"the environments of {' and '.join(missing)} are not in {peers_folder()}; `make bench-peers` builds them, "
            "or measure without: --peers none"
        )


class SentenceTransformers:
    """The library offline, in one process for each of POLICIES."""

    def __init__(self, folder: Path, dtypes: Sequence[str], work: Path) -> None:
        self._processes: dict[str, _Library] = {}
        try:
            for policy in POLICIES:
                log = work / f"{SENTENCE_TRANSFORMERS}-{policy}.log"
                self._processes[policy] = _Library(folder, dtypes, log, policy)
        except BaseException:
            self.__exit__()
            raise
        self.about = self._processes["default"].about

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.close()

    def encode(self, texts: Sequence[str], *, dtype: str, batch: int, policy: str) -> dict[str, float]:
        """The `seconds` and `cpu_s` that its own `encode` took inside its process."""
        answer = self._processes[policy].ask(texts, dtype, batch, vectors=False)
        return {name: float(answer[name]) for name in ("seconds", "cpu_s")}

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Rows [n, d] as the library gives them by default."""
        answer = self._processes["default"].ask(texts, LIBRARY_DTYPE, LIBRARY_BATCH, vectors=True)
        return np.frombuffer(base64.b64decode(answer["vectors"]), "<f4").reshape(len(texts), -1)


class _Library:
    """One process of it, stopped between its answers."""

    def __init__(self, folder: Path, dtypes: Sequence[str], log: Path, policy: str) -> None:
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(program(SENTENCE_TRANSFORMERS, "python")), str(_SCRIPT), str(folder), *dtypes],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=peer_environment(policy),
            )
        self._log = log
        with turn_of(self._process):
            self.about = self._answer()

    def close(self) -> None:
        end(self._process)

    def ask(self, texts: Sequence[str], dtype: str, batch: int, *, vectors: bool) -> dict[str, Any]:
        assert self._process.stdin is not None
        request = {"texts": list(texts), "dtype": dtype, "batch": batch, "vectors": vectors}
        with turn_of(self._process):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OpenbookError(f"{SENTENCE_TRANSFORMERS} ended; the end of its log:\n{tail(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Infinity:
    """Its server, stopped while it is not its turn; at its own defaults where no `settings` (`dtype`, `batch`) are given.

    Its `--bettertransformer` is on by default and does nothing without its extra for GPUs.
    """

    model = "peer"

    def __init__(self, folder: Path, port: int, settings: Mapping[str, Any], policy: str, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        options = {
            "--model-id": folder,
            "--served-model-name": self.model,
            "--host": "127.0.0.1",
            "--port": port,
            "--log-level": "error",
        }
        if settings:
            options |= {"--dtype": settings["dtype"], "--batch-size": settings["batch"]}
        arguments = [str(each) for option in options.items() for each in option]
        started = time.perf_counter()
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [str(program(INFINITY, "infinity_emb")), "v2", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=peer_environment(policy) | {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"},
            )
        try:
            self._wait(log, started + _START_S)
        except BaseException:
            end(self._process)
            raise
        self.start_s = time.perf_counter() - started
        self._process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        end(self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def turn(self) -> AbstractContextManager[None]:
        """Let it run."""
        return turn_of(self._process)

    def _wait(self, log: Path, deadline: float) -> None:
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                if self._process.poll() is not None or time.perf_counter() > deadline:
                    raise UnavailableError(f"{INFINITY} did not start; the end of its log:\n{tail(log)}") from None
                time.sleep(0.05)


@contextmanager
def turn_of(process: subprocess.Popen[Any]) -> Iterator[None]:
    """It runs within, and is stopped after."""
    process.send_signal(signal.SIGCONT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGSTOP)


def infinity_versions() -> dict[str, str]:
    """Of what decides its speed, from its environment."""
    names = ("infinity-emb", "torch", "transformers", "sentence-transformers", "numpy")
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    done = subprocess.run([program(INFINITY, "python"), "-c", code], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def program(peer: str, name: str) -> Path:
    """A program of a peer's environment."""
    return peers_folder() / peer / "bin" / name


def peer_environment(policy: str = "default") -> dict[str, str]:
    """Ours without what is set for us, with one of POLICIES; nobody asks a hub."""
    ours = ("PYTHONPATH", "TOKENIZERS_PARALLELISM", "OMP_WAIT_POLICY")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"HF_HUB_OFFLINE": "1"} | ({} if policy == "default" else {"OMP_WAIT_POLICY": policy.upper()})
