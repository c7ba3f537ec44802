"""What a container engine would do with the Dockerfiles, in bare virtual environments: `make image-smoke`.

The build stage's RUN lines and the ENTRYPOINT, CMD and HEALTHCHECK are read from the Dockerfiles and run as they are, but
for folders, hosts and ports. The command runs with the image's ENV only, and, where this is run as root with an
interpreter that others can read, as user 10001, to whom nothing of the image is writable; a service must become healthy
by its own health check. What an image must not hold is looked up after pip.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from openbook_database.registry.local_redis import LocalRedis

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "docker"
HEAVY = ("torch", "transformers", "peft")
WEB = ("fastapi", "uvicorn", "starlette")
COMMAND = ("openbook-cli",)
ABSENT = {
    # FastAPI and uvicorn are its HTTP endpoint, OpenAI's /v1/embeddings.
    "embedder": (*COMMAND, "faiss-cpu", "peft", "openbook-database"),
    "retriever": (*HEAVY, *WEB, *COMMAND, "openbook-model"),
    "generator": (*COMMAND, "peft", "openbook-embedder", "openbook-trainer"),
    "trainer": (*WEB, *COMMAND, "openbook-embedder", "openbook-retriever"),
    "cli": (),
}
PASSED_ON = ("PIP_CONFIG_FILE", "PIP_FIND_LINKS", "PIP_CERT", "PIP_INDEX_URL", "HTTPS_PROXY", "https_proxy")
HEALTHY_WITHIN_S = 120.0


@dataclass
class Image:
    """The last stage of a Dockerfile, and what the first one runs."""

    runs: list[str] = field(default_factory=list)
    copies: list[tuple[list[str], str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def read_dockerfile(path: Path) -> Image:
    """Raises ValueError for an instruction that this reader does not know."""
    image, stage = Image(), 0
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage += 1
            image.environment = {}
        elif word == "RUN" and stage == 1:
            image.runs.append(re.sub(r"--mount=\S+\s+", "", rest).strip())
        elif word == "COPY":
            if stage == 1:
                *sources, target = shlex.split(rest)
                image.copies.append((sources, target))
        elif word == "ENV":
            image.environment |= dict(part.split("=", 1) for part in shlex.split(rest))
        elif word == "ARG":
            image.arguments |= dict([rest.split("=", 1)])
        elif word == "USER":
            image.user = rest
        elif word == "ENTRYPOINT":
            image.entrypoint = json.loads(rest)
        elif word == "CMD":
            image.command = json.loads(rest)
        elif word == "HEALTHCHECK":
            image.health = json.loads(rest.partition("CMD ")[2] or "[]")
        elif word not in ("", "WORKDIR", "EXPOSE", "VOLUME"):
            raise ValueError(f"{path.name}: {word} is not known here")
    return image


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def may_change_user() -> bool:
    """Whether this is root, with an interpreter and a checkout that other users can read."""
    places = [place for start in (Path(sys.base_prefix), ROOT) for place in (start, *start.parents)]
    return os.geteuid() == 0 and all(place.stat().st_mode & 0o001 for place in places)


def build(image: Image, name: str, folder: Path) -> None:
    """Run the build stage in `folder`: /src and /opt/openbook are folders there."""
    source, venv = folder / "src", folder / "openbook"
    for sources, target in image.copies:
        for each in sources:
            origin, place = ROOT / each, source / target / ("" if (ROOT / each).is_dir() else each)
            if origin.is_dir():
                shutil.copytree(origin, place, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(origin, place)
    environment = {key: os.environ[key] for key in PASSED_ON if key in os.environ} | {
        "PATH": f"{venv}/bin:{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin",
        "HOME": os.environ.get("HOME", "/root"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_QUIET": "2",
        "PIP_NO_COMPILE": "1",
        # The development set-up's own index holds the pinned torch.
        **{key: os.environ.get(key, "") for key in image.arguments},
    }
    for line in image.runs:
        line = line.replace("/opt/openbook", str(venv)).replace("python -m venv", "python3 -m venv")
        subprocess.run(["bash", "-ec", line], cwd=source, env=environment, check=True, timeout=500)
    names = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    listed = subprocess.run([f"{venv}/bin/python", "-c", names], check=True, capture_output=True, text=True)
    held = {each.lower().replace("_", "-") for each in listed.stdout.split()}
    if wrong := held.intersection(ABSENT[name]):
        raise SystemExit(f"{name}: the image holds {', '.join(sorted(wrong))}")
    print(f"{name}: installed {len(held)} packages, none of {', '.join(ABSENT[name]) or '-'}", flush=True)


def start(image: Image, name: str, folder: Path, redis_port: int) -> None:
    """Run ENTRYPOINT and CMD until the health check passes, or, for a job, to its end."""
    if image.user.split(":")[0] in ("", "0", "root"):
        raise SystemExit(f"{name}: runs as root")
    swaps = {"/opt/openbook": str(folder / "openbook"), "/etc/openbook/train.yaml": "examples/train/tiny.yaml"}
    swaps |= {"redis:6379": f"127.0.0.1:{redis_port}", "router:7000": "127.0.0.1:9", "0.0.0.0": "127.0.0.1"}
    writable = folder / "writable"
    writable.mkdir()
    environment = {
        key: value.replace("/opt/openbook", swaps["/opt/openbook"]) for key, value in image.environment.items()
    }
    environment["PATH"] = environment["PATH"].replace("$PATH", "/usr/bin:/bin")
    environment |= {key: str(writable) for key in ("HOME", "OPENBOOK_CACHE") if key in environment}
    words = image.entrypoint + image.command
    ports = {port: free_port() for port in ("7000", "7001", "7002", "8000", "9100")}

    def adapt(word: str) -> str:
        for written, here in swaps.items():
            word = word.replace(written, here)
        return re.sub(r"(?<![\d.])(7000|7001|7002|8000|9100)(?!\d)", lambda found: ports[found[1]], word)

    words, health = [adapt(word) for word in words], [adapt(word) for word in image.health]
    if name == "trainer":
        words.append("--print-config")
    user = {"user": 10001, "group": 10001, "extra_groups": []} if may_change_user() else {}
    if user:
        os.chown(writable, 10001, 10001)
    words[0] = shutil.which(words[0], path=environment["PATH"]) or words[0]
    began = time.monotonic()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            words, env=environment, cwd=ROOT if name == "trainer" else writable, stdout=log, stderr=log, **user
        )  # type: ignore[call-overload]
    try:
        if not health:
            if process.wait(HEALTHY_WITHIN_S):
                raise SystemExit(
                    f"{name}: {' '.join(words)} ended with {process.returncode}\n{(folder / 'log').read_text()}"
                )
        else:
            health[0] = shutil.which(health[0], path=environment["PATH"]) or health[0]
            while subprocess.run(health, env=environment, cwd=writable, capture_output=True, timeout=30).returncode:
                if process.poll() is not None or time.monotonic() - began > HEALTHY_WITHIN_S:
                    raise SystemExit(f"{name}: not healthy\n{(folder / 'log').read_text()}")
                time.sleep(0.5)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
    print(f"{name}: {'healthy' if health else 'ran'} after {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="*", choices=[*ABSENT, []], help="only these")
    chosen = parser.parse_args().images or list(ABSENT)
    with tempfile.TemporaryDirectory() as scratch, LocalRedis(Path(scratch) / "redis") as redis:
        os.chmod(scratch, 0o755)
        for name in chosen:
            image, folder, began = (
                read_dockerfile(FOLDER / f"{name}.Dockerfile"),
                Path(scratch) / name,
                time.monotonic(),
            )
            build(image, name, folder)
            start(image, name, folder, redis.port)
            shutil.rmtree(folder)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
