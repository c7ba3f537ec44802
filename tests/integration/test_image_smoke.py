"""`make image-smoke` in the small: what a step leaves is looked at, a failed step is shown, a signal leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy" / "docker"))
from dockerfile import Image, read_dockerfile
from image_smoke import TRAINS_WITH, build, start, until_healthy

DOCKER = Path(__file__).parents[2] / "deploy" / "docker"

DOCKERFILE = """FROM python:3 AS build
WORKDIR /src
RUN python -m venv /opt/openbook
ENV PATH=/opt/openbook/bin:$PATH
COPY wheels ./wheels
RUN pip install --no-index ./wheels/*.whl
FROM python:3
COPY --from=build /opt/openbook /opt/openbook
"""


def write_wheel(folder: Path, name: str) -> None:
    folder.mkdir()
    info = f"{name}-1.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_an_image_that_holds_torch_is_no_retriever(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    write_wheel(context / "wheels", "Torch")
    path = context / "retriever.Dockerfile"
    path.write_text(DOCKERFILE)
    with pytest.raises(SystemExit, match="the image holds torch"):
        build(read_dockerfile(path), "retriever", tmp_path / "image", context)


def test_steps_are_taken_in_order_and_pip_keeps_to_the_environment(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wheels").mkdir()
    path = tmp_path / "x.Dockerfile"
    # Without the image's PATH, pip is the machine's.
    without = DOCKERFILE.replace("RUN python -m venv /opt/openbook\nENV PATH=/opt/openbook/bin:$PATH\n", "")
    path.write_text(without)
    with pytest.raises(SystemExit, match="ended with"):
        build(read_dockerfile(path), "cli", tmp_path / "first", tmp_path)
    path.write_text(without.replace("COPY wheels", "RUN ls wheels\nCOPY wheels"))
    with pytest.raises(SystemExit, match="ended with 2"):
        build(read_dockerfile(path), "cli", tmp_path / "second", tmp_path)
    assert "Could not find an activated virtualenv" in capfd.readouterr().err


def test_a_build_argument_has_its_default_unless_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.Dockerfile"
    path.write_text(DOCKERFILE.replace("RUN python", 'ARG KIND=one\nRUN test "$KIND" = one\nRUN python', 1))
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels" / "x", "x")
    monkeypatch.setenv("KIND", "two")
    with pytest.raises(SystemExit, match="ended with 1"):
        build(read_dockerfile(path), "cli", tmp_path / "first", tmp_path)
    monkeypatch.delenv("KIND")
    path.write_text(path.read_text().replace("./wheels/*.whl", "./wheels/x/*.whl"))
    build(read_dockerfile(path), "cli", tmp_path / "second", tmp_path)


def test_the_health_check_runs_as_the_images_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users: list[object] = []

    def run(words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        users.append(options.get("user"))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr("image_smoke.subprocess.run", run)
    with socket.create_server(("127.0.0.1", 0)) as listening, subprocess.Popen(["sleep", "60"]) as process:
        health = ["check", f"http://127.0.0.1:{listening.getsockname()[1]}/healthz"]
        until_healthy(process, health, {}, tmp_path, {"user": 10001})
        process.terminate()
    assert users == [10001]


@pytest.mark.parametrize("status", [0, 1])
def test_what_the_trainer_trains_with_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr("image_smoke._may_change_user", lambda: False)
    python = tmp_path / "openbook" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$2" > imported\nexit {status}\n')
    python.chmod(0o755)
    image = Image(user="10001:10001", environment={"PATH": "/opt/openbook/bin:$PATH"}, entrypoint=["true"])
    if status:
        with pytest.raises(SystemExit, match="cannot import openbook_trainer"):
            start(image, "trainer", tmp_path, 0)
    else:
        start(image, "trainer", tmp_path, 0)
    assert (tmp_path / "writable" / "imported").read_text().strip() == TRAINS_WITH


def begin(folder: Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DOCKER / "image_smoke.py"), "retriever"],
        env={**os.environ, "TMPDIR": str(folder), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_failed_step_is_shown(tmp_path: Path) -> None:
    nowhere = (tmp_path / "no-index").as_uri()
    process = begin(tmp_path, PIP_INDEX_URL=nowhere, PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "retriever: FAILED" in said and "RUN pip install -c constraints.txt" in said and "hatchling" in said, said
    assert not list(tmp_path.iterdir())


def processes_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            found += [" ".join(process.cmdline())] if str(folder) in " ".join(process.cmdline()) else []
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(tmp_path: Path, sign: signal.Signals) -> None:
    process = begin(tmp_path)
    deadline = time.monotonic() + 60
    while not any("ensurepip" in each for each in processes_in(tmp_path)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sign)
    process.communicate(timeout=60)
    assert process.returncode == 128 + sign
    assert not list(tmp_path.iterdir()) and not processes_in(tmp_path)
