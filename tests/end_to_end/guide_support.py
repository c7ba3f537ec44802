"""A guide's commands, run as written but for ports, folders and sizes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from openbook_database.registry.local_redis import free_port

ROOT = Path(__file__).parents[2]


class Guide:
    """The ```sh blocks of a page, or of one of its sections, by heading.

    `smaller`: what is written, which must be there, and what is run.
    """

    def __init__(self, page: str, folder: Path, smaller: Mapping[str, str], section: str = "") -> None:
        text = (ROOT / page).read_text(encoding="utf-8")
        if section:
            text = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
        self._folder, self._log = folder, folder / "log"
        self.blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        self._smaller = {**smaller, "examples/": f"{ROOT}/examples/"}
        for written in smaller:
            assert any(written in block for block in self.blocks), f"{page} no longer says {written!r}"
        self.ports = {port: str(free_port()) for port in ("7000", "7001", "7002", "8000")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PATH": path}

    def run(self, block: str) -> str:
        """Standard output; a command that fails fails the test."""
        done = subprocess.run(
            ["bash", "-ec", self._adapt(block)],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, f"{done.stderr}\n{self._log.read_text() if self._log.exists() else ''}"
        return done.stdout

    @contextmanager
    def services(self, block: str) -> Iterator[Path]:
        """The services that the block starts in the background, from when all are ready until they have ended.

        Gives the file of what they print. One that ends by itself, as the block when a command fails, fails the test.
        """
        output = self._folder / f"output-{self.blocks.index(block)}"
        # `wait -n` would not see a job that has ended before.
        all_run = f'while [ "$(jobs -pr | wc -l)" -ge {block.count(" &")} ]; do sleep 0.2; done\n'
        with output.open("w") as stdout, self._log.open("a") as stderr:
            shell = subprocess.Popen(
                ["bash", "-ec", self._adapt(block) + all_run],
                cwd=self._folder,
                env=self._environment,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                deadline = time.monotonic() + 240
                while output.read_text().count('"address"') < block.count("serve "):
                    assert shell.poll() is None, f"ended early:\n{self._log.read_text()}"
                    assert time.monotonic() < deadline, self._log.read_text()
                    time.sleep(0.2)
                yield output
                assert shell.poll() is None, f"ended early:\n{self._log.read_text()}"
            finally:
                _end_group(shell)

    def _adapt(self, block: str) -> str:
        for written, smaller in self._smaller.items():
            block = re.sub(rf"(?<![\w/]){re.escape(written)}", lambda _, new=smaller: new, block)
        for port, free in self.ports.items():
            block = re.sub(rf"(?<=:){port}|(?<=port ){port}", free, block)
        return block


def _end_group(shell: subprocess.Popen[bytes]) -> None:
    """End the shell and all that it started; SIGKILL for what has not ended after 30 s."""
    for sign, patience_s in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, sign)
        deadline = time.monotonic() + patience_s
        while _lives(shell.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
    shell.wait(10)


def _lives(group: int) -> bool:
    """Whether a process of the group runs; one that has ended and was not waited for does not."""
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False
