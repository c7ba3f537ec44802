"""The commands of every overlay as processes, from an empty Redis to a trained model."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from manifest_checks import environment, train_config
from manifest_probes import health_command
from manifest_security import make_secrets
from manifests import K8S, OVERLAYS, ROOT, Container, containers, render

from openbook_core.health import why_unhealthy
from openbook_database.registry.local_redis import find_redis_server, free_port

PASSWORD = "not-a-secret"
# Without the timing of two dtypes at the start.
FAST = {"embedder": ["--dtype=float32"], "generator": ["--dtype=float32"]}
DOCUMENTS = "2015-11-18.jsonl.zst"


@dataclass
class Running:
    """A started container."""

    process: subprocess.Popen[str]
    container: Container
    port: str
    log_file: Path
    variables: dict[str, str]

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")[-3000:]

    def status(self) -> int:
        return self.process.wait(240)

    def until_ready(self) -> None:
        """By the container's own readiness probe."""
        probe = self.container.spec["readinessProbe"]
        if "exec" in probe:
            *program, written = health_command(self.container, probe)
            address = re.sub(r":\d{4}", f":{self.port}", written)
        elif "grpc" in probe:
            address = f"grpc://127.0.0.1:{self.port}/{probe['grpc']['service']}"
        else:
            get = probe["httpGet"]
            address = f"{get.get('scheme', 'HTTP').lower()}://127.0.0.1:{self.port}{get['path']}"
        end = time.monotonic() + 180
        while why := self._why_not(address):
            assert self.process.poll() is None and time.monotonic() < end, f"{why}\n{self.log()}"
            time.sleep(0.2)
        if "exec" in probe:
            subprocess.run([*program, address], env=self.variables, check=True, timeout=60)

    def _why_not(self, address: str) -> str:
        if not address.startswith("https"):
            with patch.dict(os.environ, self.variables):
                return why_unhealthy(address)
        try:  # as the kubelet, which looks at no certificate
            with urllib.request.urlopen(address, timeout=5, context=ssl._create_unverified_context()):
                return ""
        except OSError as error:
            return str(error)


class Cluster:
    """Runs containers on this machine: paths, hosts and ports are replaced, everything else is as rendered.

    Overlays share files and Redis, in which each has a database of its own.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        rendered = {overlay: render(K8S / "overlays" / overlay) for overlay in OVERLAYS}
        self.containers: dict[tuple[str, str], Container] = {
            (overlay, each.workload["metadata"]["name"]): each
            for overlay, documents in rendered.items()
            for each in containers(documents)
            if not each.sidecar  # test_manifests starts it
        }
        self.not_started = {_command(each) for each in self.containers.values()}
        self._redis = str(free_port())
        hosts = ("router", "embedder", "generator", "rendezvous")
        self._ports = {overlay: {name: str(free_port()) for name in hosts} for overlay in OVERLAYS}
        for name in ("files", "snapshots", "data", "bin"):
            (folder / name).mkdir()
        for name, module in (("openbook", "openbook_cli"), ("torchrun", "torch.distributed.run")):
            self._program(name, f'exec "{sys.executable}" -m {module} "$@"')
        self._program("python", f'exec "{sys.executable}" "$@"')
        (folder / "bin" / "redis-server").symlink_to(find_redis_server())
        shutil.copy(ROOT / "examples" / "factbook" / DOCUMENTS, folder / "files" / "documents.jsonl.zst")
        for overlay in OVERLAYS:
            (folder / overlay).mkdir()
            config = train_config(rendered[overlay], "train.yaml", folder / overlay)
            config.write_text(self.words_here(config.read_text(encoding="utf-8"), overlay), encoding="utf-8")
        secrets = make_secrets(folder / "made")
        for container in self.containers.values():
            for place, (secret, key) in container.secret_files.items():
                file = Path(self.words_here(place, "production"))
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(secrets[secret][key])

    def _program(self, name: str, line: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        path.chmod(0o755)

    def words_here(self, text: str, overlay: str, **own: str) -> str:
        for place, here in (
            ("/snapshots", "snapshots"),
            ("/files", "files"),
            ("/secrets", "secrets"),
            ("/etc/openbook", overlay),
            (" /data", "data"),
        ):
            text = text.replace(place, " " * place.startswith(" ") + str(self.folder / here))
        text = text.replace("redis://redis:6379", f"redis://127.0.0.1:{self._redis}/{OVERLAYS.index(overlay)}")
        text = re.sub(r"--port 6379", f"--port {self._redis}", text)
        for name, port in self._ports[overlay].items():
            text = re.sub(rf"\b{name}:\d{{4}}\b", f"127.0.0.1:{port}", text)
        text = text.replace("0.0.0.0", "127.0.0.1").replace("train-0.train", "127.0.0.1")
        text = re.sub(r"--master-port=\d+", f"--master-port={self._ports[overlay]['rendezvous']}", text)
        text = re.sub(r"--metrics-port=\d+", lambda _: f"--metrics-port={own['metrics']}", text)
        return re.sub(r"--port=\d+", lambda _: f"--port={own['port']}", text)

    def begin(self, workload: str, *more: str, overlay: str = "production", index: int = 0) -> Running:
        container = self.containers[overlay, workload]
        self.not_started.discard(_command(container))
        port = self._redis if workload == "redis" else self._ports[overlay].get(workload, str(free_port()))
        own = {"port": port, "metrics": str(free_port())}
        words = [self.words_here(word, overlay, **own) for word in container.words]
        words = [re.sub(r"(--member-index|--node-rank)=0", rf"\g<1>={index}", word) for word in words]
        # No GPU is seen, so that every machine tests the same.
        given = {name: self.words_here(value, overlay) for name, value in container.variables.items()}
        variables = environment(OPENBOOK_REDIS_PASSWORD=PASSWORD, HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", **given)
        variables["PATH"] = f"{self.folder / 'bin'}:{variables['PATH']}"
        words[0] = shutil.which(words[0], path=variables["PATH"]) or words[0]
        log_file = self.folder / f"{overlay}-{workload}-{index}.log"
        with log_file.open("w") as log:
            process = subprocess.Popen(
                [*words, *more], stdout=log, stderr=log, text=True, env=variables, cwd=self.folder
            )
        self._stack.callback(self._end, process)
        return Running(process, container, port, log_file, variables)

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def finish(self, workload: str, *more: str, overlay: str = "production") -> None:
        job = self.begin(workload, *more, overlay=overlay)
        assert job.status() == 0, job.log()


def _command(container: Container) -> tuple[str, ...]:
    return (*container.words, *sorted(f"{name}={value}" for name, value in container.variables.items()))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


def test_the_rendered_commands_run(cluster: Cluster) -> None:
    redis = cluster.begin("redis")
    end = time.monotonic() + 20
    while socket.socket().connect_ex(("127.0.0.1", int(redis.port))):
        assert redis.process.poll() is None and time.monotonic() < end, redis.log()
        time.sleep(0.1)
    begun = []
    for overlay, members in (("production", (0, 1)), ("single-node", (0,))):
        begun.append(cluster.begin("embedder", *FAST["embedder"], overlay=overlay))
        begun.append(cluster.begin("router", overlay=overlay))
        begun += [cluster.begin("shard-a", overlay=overlay, index=member) for member in members]
    cluster.finish("build", "--limit-documents=8", "--dtype=float32")
    for service in begun:
        service.until_ready()
    for overlay in ("production", "single-node"):
        cluster.finish("publish", overlay=overlay)
        cluster.finish("swap", overlay=overlay)
    generators = [
        cluster.begin("generator", *FAST["generator"], overlay=overlay) for overlay in ("production", "single-node")
    ]
    for generator in generators:
        generator.until_ready()

    def train(overlay: str, *ranks: int) -> list[Running]:
        runs = cluster.folder / "files" / "runs"
        small = ["corpus.max_documents=6", "steps=2", "optimiser.warmup_steps=1", "evaluation.sequences=4"]
        settings = [f"--set={each}" for each in (*small, f"out={runs / overlay}")]
        return [cluster.begin("train", *settings, overlay=overlay, index=rank) for rank in ranks]

    for overlay, ranks in (("production", (0, 1)), ("single-node", (0,))):
        for rank in train(overlay, *ranks):
            assert rank.status() == 0, rank.log()
        assert (cluster.folder / "files" / "runs" / overlay / "model" / "config.json").exists()
    for rank in train("gpu", 0, 1):
        assert rank.status() != 0 and "cuda was asked for and there is no GPU" in rank.log(), rank.log()
    assert not cluster.not_started
