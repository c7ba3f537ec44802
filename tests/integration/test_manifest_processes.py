"""The commands of every overlay as processes, from an empty Redis to a trained model."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from manifest_checks import K8S, OVERLAYS, ROOT, Container, containers, environment, render, train_config

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

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")[-3000:]

    def status(self) -> int:
        return self.process.wait(240)

    def until_ready(self) -> None:
        """By the container's own readiness probe."""
        probe = self.container.spec["readinessProbe"]
        if "grpc" in probe:
            address = f"grpc://127.0.0.1:{self.port}/{probe['grpc']['service']}"
        else:
            address = f"http://127.0.0.1:{self.port}{probe['httpGet']['path']}"
        end = time.monotonic() + 180
        while why := why_unhealthy(address):
            assert self.process.poll() is None and time.monotonic() < end, f"{why}\n{self.log()}"
            time.sleep(0.2)


class Cluster:
    """Runs containers on this machine: paths, hosts and ports are replaced, everything else is as rendered."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        rendered = {overlay: render(K8S / "overlays" / overlay) for overlay in OVERLAYS}
        self.containers: dict[tuple[str, str], Container] = {
            (overlay, each.workload["metadata"]["name"]): each
            for overlay, documents in rendered.items()
            for each in containers(documents)
            if not each.sidecar  # test_manifests starts it
        }
        self.not_started = {tuple(each.words) for each in self.containers.values()}
        self._ports = {name: str(free_port()) for name in ("redis", "router", "embedder", "generator")}
        self._rendezvous = {overlay: str(free_port()) for overlay in OVERLAYS}
        for name in ("files", "snapshots", "data", "etc", "bin"):
            (folder / name).mkdir()
        for name, module in (("openbook", "openbook_cli"), ("torchrun", "torch.distributed.run")):
            self._program(name, f'exec "{sys.executable}" -m {module} "$@"')
        self._program("python", f'exec "{sys.executable}" "$@"')
        (folder / "bin" / "redis-server").symlink_to(find_redis_server())
        train_config(rendered["production"], "train.yaml", folder / "etc")
        shutil.copy(ROOT / "examples" / "factbook" / DOCUMENTS, folder / "files" / "documents.jsonl.zst")
        config = folder / "etc" / "train.yaml"
        config.write_text(self.words_here(config.read_text(encoding="utf-8")), encoding="utf-8")

    def _program(self, name: str, line: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        path.chmod(0o755)

    def words_here(self, text: str, **own: str) -> str:
        for place, here in (
            ("/snapshots", "snapshots"),
            ("/files", "files"),
            ("/etc/openbook", "etc"),
            (" /data", "data"),
        ):
            text = text.replace(place, " " * place.startswith(" ") + str(self.folder / here))
        for name, port in self._ports.items():
            text = re.sub(rf"\b{name}:\d{{4}}\b", f"127.0.0.1:{port}", text)
        text = text.replace("0.0.0.0", "127.0.0.1").replace("train-0.train", "127.0.0.1")
        text = re.sub(r"--port 6379", f"--port {self._ports['redis']}", text)
        text = re.sub(r"--master-port=\d+", lambda _: f"--master-port={own['rendezvous']}", text)
        text = re.sub(r"--metrics-port=\d+", lambda _: f"--metrics-port={own['metrics']}", text)
        return re.sub(r"--port=\d+", lambda _: f"--port={own['port']}", text)

    def begin(self, workload: str, *more: str, overlay: str = "production", index: int = 0) -> Running:
        container = self.containers[overlay, workload]
        self.not_started.discard(tuple(container.words))
        own = {"port": self._ports.get(workload, str(free_port())), "metrics": str(free_port())}
        own["rendezvous"] = self._rendezvous[overlay]
        words = [self.words_here(word, **own) for word in container.words]
        words = [re.sub(r"(--member-index|--node-rank)=0", rf"\g<1>={index}", word) for word in words]
        # No GPU is seen, so that every machine tests the same.
        variables = environment(OPENBOOK_REDIS_PASSWORD=PASSWORD, HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
        variables["PATH"] = f"{self.folder / 'bin'}:{variables['PATH']}"
        words[0] = shutil.which(words[0], path=variables["PATH"]) or words[0]
        log_file = self.folder / f"{overlay}-{workload}-{index}.log"
        with log_file.open("w") as log:
            process = subprocess.Popen(
                [*words, *more], stdout=log, stderr=log, text=True, env=variables, cwd=self.folder
            )
        self._stack.callback(self._end, process)
        return Running(process, container, own["port"], log_file)

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def finish(self, workload: str, *more: str) -> None:
        job = self.begin(workload, *more)
        assert job.status() == 0, job.log()


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
    begun = [cluster.begin("embedder", *FAST["embedder"]), cluster.begin("router")]
    begun += [cluster.begin("shard-a", index=member) for member in (0, 1)]
    begun.append(cluster.begin("shard-a", overlay="single-node"))
    cluster.finish("build", "--limit-documents=8", "--dtype=float32")
    for service in begun:
        service.until_ready()
    cluster.finish("publish")
    cluster.finish("swap")
    cluster.begin("generator", *FAST["generator"]).until_ready()

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
