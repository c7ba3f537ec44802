"""Whom the embedder is measured against, each in a process of its own: sentence-transformers and infinity.

`make bench-peers` builds their environments in `peers_folder()`.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from embedder_process import end, tail
from numpy.typing import NDArray

from openbook_core.errors import NotFoundError, OpenbookError, UnavailableError

SENTENCE_TRANSFORMERS, INFINITY = "sentence-transformers", "infinity"
PEERS = (SENTENCE_TRANSFORMERS, INFINITY)
_SCRIPT = Path(__file__).parent / "peers" / "sentence_transformers_peer.py"
_START_S = 180.0


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
    """The library offline; `encode` gives the `seconds` and `cpu_s` that its own `encode` took inside its process."""

    def __init__(self, folder: Path, dtypes: Sequence[str], log: Path) -> None:
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(program(SENTENCE_TRANSFORMERS, "python")), str(_SCRIPT), str(folder), *dtypes],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=peer_environment(),
            )
        self._log = log
        self.about = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)

    def encode(self, texts: Sequence[str], *, dtype: str, batch: int) -> dict[str, float]:
        answer = self._ask(texts, dtype, batch, vectors=False)
        return {name: float(answer[name]) for name in ("seconds", "cpu_s")}

    def vectors(self, texts: Sequence[str], *, dtype: str, batch: int) -> NDArray[np.float32]:
        """Rows [n, d]."""
        data = base64.b64decode(self._ask(texts, dtype, batch, vectors=True)["vectors"])
        return np.frombuffer(data, "<f4").reshape(len(texts), -1)

    def _ask(self, texts: Sequence[str], dtype: str, batch: int, *, vectors: bool) -> dict[str, Any]:
        assert self._process.stdin is not None
        request = {"texts": list(texts), "dtype": dtype, "batch": batch, "vectors": vectors}
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
    """Its server, stopped (SIGSTOP) while it is not its turn, since its threads poll."""

    model = "peer"

    def __init__(self, folder: Path, port: int, *, dtype: str, batch: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        options = {
            "--model-id": folder,
            "--served-model-name": self.model,
            "--host": "127.0.0.1",
            "--port": port,
            "--engine": "torch",
            "--device": "cpu",
            "--dtype": dtype,
            "--batch-size": batch,
            "--log-level": "error",
        }
        arguments = [str(each) for option in options.items() for each in option]
        started = time.perf_counter()
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [str(program(INFINITY, "infinity_emb")), "v2", *arguments, "--no-bettertransformer"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=peer_environment() | {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"},
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
        self._process.send_signal(signal.SIGCONT)
        end(self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run."""
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def _wait(self, log: Path, deadline: float) -> None:
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                if self._process.poll() is not None or time.perf_counter() > deadline:
                    raise UnavailableError(f"{INFINITY} did not start; the end of its log:\n{tail(log)}") from None
                time.sleep(0.05)


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


def peer_environment() -> dict[str, str]:
    """Ours without the paths of our packages; nobody asks a hub, and no thread spins while others work."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TOKENIZERS_PARALLELISM")}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
