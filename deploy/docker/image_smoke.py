"""What a container engine would do with the Dockerfiles, in bare virtual environments: `make image-smoke`.

The build stage's steps are taken in order and its RUN lines run as they are, but for folders; so are ENTRYPOINT, CMD and
HEALTHCHECK, but for folders, hosts and ports. The command runs with the image's ENV only, and, where this is run as root
with an interpreter that others can read, as user 10001, to whom nothing of the image is writable; a service must become
healthy by its own health check. Images are independent of each other, so there are as many at a time as cores.
The log of a failed one is shown, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from dockerfile import FORBIDDEN, INSTALLED, SOURCE, Copy, Env, Image, forbidden, read_dockerfile

from openbook_database.registry.local_redis import LocalRedis, free_port

ROOT = Path(__file__).parents[2]
# The longest first.
IMAGES = ("cli", "generator", "trainer", "embedder", "retriever")
PASSED_ON = ("PIP_CONFIG_FILE", "PIP_FIND_LINKS", "PIP_CERT", "PIP_INDEX_URL", "HTTPS_PROXY", "https_proxy")
STEP_WITHIN_S = 900.0
HEALTHY_WITHIN_S = 600.0  # for a busy machine
TRAINS_WITH = "import openbook_trainer.sft.run, openbook_trainer.app"


def build(image: Image, name: str, folder: Path, root: Path = ROOT) -> None:
    """Take the build stage's steps; `folder` has what would be /src and /opt/openbook, `root` is the build context."""
    source, venv = folder / "src", folder / "openbook"
    source.mkdir(parents=True)
    environment = {key: os.environ[key] for key in PASSED_ON if key in os.environ} | {
        "PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin",
        "HOME": os.environ.get("HOME", "/root"),  # pip's cache, where an engine mounts one
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_QUIET": "2",
        "PIP_NO_COMPILE": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
        # As --build-arg would; where TORCH_INDEX is not set, the index that pip is set up with has the pinned torch.
        **{key: os.environ.get(key, "" if key == "TORCH_INDEX" else value) for key, value in image.arguments.items()},
    }
    began = time.monotonic()
    for step in image.steps:
        match step:
            case Copy(sources, target):
                for each in sources:
                    _copy(root / each, source / target.replace(SOURCE, "."))
            case Env(values):
                for key, value in values.items():
                    value = value.replace(INSTALLED, str(venv)).replace("$PATH", environment["PATH"])
                    environment[key] = value
            case _:
                _run(step.line.replace(INSTALLED, str(venv)), source, environment)
    names = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    listed = subprocess.run([f"{venv}/bin/python", "-I", "-c", names], check=True, capture_output=True, text=True)
    held = set(listed.stdout.split())
    if wrong := forbidden(name, held):
        raise SystemExit(f"{name}: the image holds {', '.join(wrong)}")
    print(f"{len(held)} packages in {time.monotonic() - began:.0f} s, none that is forbidden", flush=True)


def _copy(origin: Path, target: Path) -> None:
    if origin.is_dir():
        shutil.copytree(origin, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(origin, target)


def _run(line: str, source: Path, environment: dict[str, str]) -> None:
    print(f"RUN {line}", flush=True)
    line = line.replace("python -m venv", "python3 -m venv")  # the name that every system has
    done = subprocess.run(["bash", "-ec", line], cwd=source, env=environment, timeout=STEP_WITHIN_S)
    if done.returncode:
        raise SystemExit(f"ended with {done.returncode}")


def start(image: Image, name: str, folder: Path, redis_port: int) -> None:
    """Run ENTRYPOINT and CMD until the health check passes, or, for a job, to its end."""
    if image.user.split(":")[0] in ("", "0", "root"):
        raise SystemExit(f"{name}: runs as root")
    writable = folder / "writable"
    writable.mkdir()
    swaps = {INSTALLED: str(folder / "openbook"), "/etc/openbook/train.yaml": "examples/train/tiny.yaml"}
    swaps |= {"redis:6379": f"127.0.0.1:{redis_port}", "router:7000": "127.0.0.1:9", "0.0.0.0": "127.0.0.1"}
    ports = {port: str(free_port()) for port in ("7000", "7001", "7002", "8000", "9100")}

    def adapt(word: str) -> str:
        for written, here in swaps.items():
            word = word.replace(written, here)
        return re.sub(r"(?<![\d.])(7000|7001|7002|8000|9100)(?!\d)", lambda found: ports[found[1]], word)

    environment = {key: value.replace(INSTALLED, swaps[INSTALLED]) for key, value in image.environment.items()}
    environment["PATH"] = environment["PATH"].replace("$PATH", "/usr/bin:/bin")
    environment |= {key: str(writable) for key in ("HOME", "OPENBOOK_CACHE") if key in environment}
    words, health = [adapt(word) for word in image.entrypoint + image.command], [adapt(word) for word in image.health]
    if name == "trainer":  # it would train: its configuration is resolved, and what it trains with is imported
        words.append("--print-config")
    user: dict[str, Any] = {"user": 10001, "group": 10001, "extra_groups": []} if _may_change_user() else {}
    if user:
        os.chown(writable, 10001, 10001)
    for command in filter(None, (words, health)):
        command[0] = shutil.which(command[0], path=environment["PATH"]) or command[0]
    print(" ".join(words), flush=True)
    began = time.monotonic()
    process = subprocess.Popen(words, env=environment, cwd=ROOT if name == "trainer" else writable, **user)
    try:
        if health:
            until_healthy(process, health, environment, writable, user)
        elif status := process.wait(HEALTHY_WITHIN_S):
            raise SystemExit(f"ended with {status}")
        if name == "trainer":
            words = [f"{swaps[INSTALLED]}/bin/python", "-c", TRAINS_WITH]
            if subprocess.run(words, env=environment, cwd=writable, timeout=STEP_WITHIN_S, **user).returncode:
                raise SystemExit(f"cannot {TRAINS_WITH}")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
    print(f"{'healthy' if health else 'ran'} after {time.monotonic() - began:.0f} s", flush=True)


def until_healthy(
    process: subprocess.Popen[bytes], health: list[str], environment: dict[str, str], cwd: Path, user: dict[str, Any]
) -> None:
    """A check costs seconds of computing, so there is none before something listens, and pauses are longer than checks."""
    place, deadline = urlsplit(health[-1]), time.monotonic() + HEALTHY_WITHIN_S
    why = "nothing listens"
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            listens = probe.connect_ex((place.hostname, place.port)) == 0
        began = time.monotonic()
        if listens:
            checked = subprocess.run(
                health, env=environment, cwd=cwd, stderr=subprocess.PIPE, text=True, timeout=120, **user
            )
            if checked.returncode == 0:
                return
            why = checked.stderr.strip()
        time.sleep(0.5 + 2 * (time.monotonic() - began))
    raise SystemExit(f"not healthy: {why if process.poll() is None else f'ended with {process.returncode}'}")


def _may_change_user() -> bool:
    """Whether this is root, with an interpreter and a checkout that other users can read."""
    places = [place for start in (Path(sys.base_prefix), ROOT) for place in (start, *start.parents)]
    return os.geteuid() == 0 and all(place.stat().st_mode & 0o001 for place in places)


def smoke(name: str, folder: Path, redis_port: int) -> None:
    """One image, from nothing to nothing."""
    image = read_dockerfile(ROOT / "deploy" / "docker" / f"{name}.Dockerfile")
    build(image, name, folder)
    start(image, name, folder, redis_port)
    shutil.rmtree(folder)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what is left of its group."""
    for sign, patience_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + patience_s
        try:
            os.killpg(process.pid, sign)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return


def _scratch(at_once: int) -> Path | None:
    """The folder for scratch folders: in memory, where there is plenty, since a disk takes minutes to write and delete so
    many files. None: as TMPDIR says.
    """
    memory, needed = Path("/dev/shm"), at_once * 2_500_000_000
    if "TMPDIR" in os.environ or not memory.is_dir() or os.statvfs(memory).f_flag & os.ST_NOEXEC:
        return None
    plenty = min(shutil.disk_usage(memory).free, psutil.virtual_memory().available // 2) > needed
    return memory if plenty else None


def smoke_all(names: list[str], at_once: int) -> list[str]:
    """The images that failed; a line each, with the log of a failed one."""
    failed, waiting, began = [], list(names), time.monotonic()
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    with ExitStack() as stack:
        scratch = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="openbook-images-", dir=_scratch(at_once)))
        )
        scratch.chmod(0o755)
        redis = stack.enter_context(LocalRedis(scratch / "redis"))
        stack.callback(lambda: [end(process) for process, _ in running.values()])
        while waiting or running:
            if waiting and len(running) < at_once:
                name = waiting.pop(0)
                words = [sys.executable, __file__, name, "--in", str(scratch / name), "--redis", str(redis.port)]
                with (scratch / f"{name}.log").open("wb") as log:
                    process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
                running[name] = process, time.monotonic()
            for name, (process, since) in list(running.items()):
                if process.poll() is None:
                    continue
                end(process)
                del running[name]
                log_text = (scratch / f"{name}.log").read_text(errors="replace")
                results = re.findall(r"^\d+ packages .*|^(?:healthy|ran) after .*", log_text, re.MULTILINE)
                took = f"{time.monotonic() - since:.0f} s"
                if process.returncode:
                    failed.append(name)
                    print(f"{name}: FAILED after {took}\n{log_text[-6000:]}", flush=True)
                else:
                    print(f"{name}: {took}: {'; '.join(results)}", flush=True)
            time.sleep(0.2)
    print(f"{len(names)} images, {at_once} at a time: {time.monotonic() - began:.0f} s", flush=True)
    return failed


def _stop(sign: int, _: object) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + sign)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"only these of {', '.join(IMAGES)}")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="images at a time (%(default)s)")
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--redis", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.images or list(IMAGES)
    if unknown := set(names) - set(FORBIDDEN):
        parser.error(f"no image {', '.join(sorted(unknown))}; there are {', '.join(IMAGES)}")
    if given.folder:
        smoke(names[0], given.folder, given.redis)
        return 0
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, _stop)
    return 1 if smoke_all(names, min(max(1, given.at_once), len(names))) else 0


if __name__ == "__main__":
    sys.exit(main())
