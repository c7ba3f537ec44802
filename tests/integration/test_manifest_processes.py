"""The commands of the production overlay as processes, from an empty Redis to a trained model."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from manifest_checks import ROOT, Container, containers, environment, render, train_config

from openbook_core.health import why_unhealthy
from openbook_database.registry.local_redis import find_redis_server

PASSWORD = "not-a-secret"
# Without the timing of two dtypes at the start.
FAST = {"embedder": ["--dtype=float32"], "generator": ["--dtype=float32"]}
DOCUMENTS = "2015-11-18.jsonl.zst"


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


class Cluster:
    """Runs containers on this machine: paths, hosts and ports are replaced, everything else is as rendered."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.documents = render(ROOT / "deploy" / "k8s" / "overlays" / "production")
        self.containers = {
            (each.workload["metadata"]["name"], each.spec["name"]): each for each in containers(self.documents)
        }
        self._ports = {name: free_port() for name in ("redis", "router", "embedder", "generator", "train")}
        for name in ("files", "snapshots", "data", "etc", "bin"):
            (folder / name).mkdir()
        for name, module in (("openbook", "openbook_cli"), ("torchrun", "torch.distributed.run")):
            self._program(name, f'exec "{sys.executable}" -m {module} "$@"')
        self._program("python", f'exec "{sys.executable}" "$@"')
        (folder / "bin" / "redis-server").symlink_to(find_redis_server())
        train_config(self.documents, "train.yaml", folder / "etc")
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
        text = re.sub(r"--master-port=\d+", f"--master-port={self._ports['train']}", text)
        text = re.sub(r"--metrics-port=\d+", lambda _: f"--metrics-port={own['metrics']}", text)
        return re.sub(r"--port=\d+", lambda _: f"--port={own['port']}", text)

    def begin(self, workload: str, name: str, *more: str, index: int = 0) -> tuple[subprocess.Popen[str], str]:
        """The process, and its port."""
        container: Container = self.containers[workload, name]
        port = self._ports.get(name, free_port())
        own = {"port": port, "metrics": free_port()}
        words = [self.words_here(word, **own) for word in container.words]
        words = [re.sub(r"(--member-index|--node-rank)=0", rf"\g<1>={index}", word) for word in words]
        log = (self.folder / f"{name}-{index}.log").open("w")
        variables = environment(OPENBOOK_REDIS_PASSWORD=PASSWORD, HF_HUB_OFFLINE="1")
        variables["PATH"] = f"{self.folder / 'bin'}:{variables['PATH']}"
        words[0] = shutil.which(words[0], path=variables["PATH"]) or words[0]
        process = subprocess.Popen([*words, *more], stdout=log, stderr=log, text=True, env=variables, cwd=self.folder)
        self._stack.callback(log.close)
        self._stack.callback(self._end, process)
        return process, port

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def finish(self, workload: str, *more: str) -> None:
        process, _ = self.begin(workload, workload, *more)
        assert process.wait(240) == 0, self.log(workload)

    def log(self, name: str, index: int = 0) -> str:
        return (self.folder / f"{name}-{index}.log").read_text(encoding="utf-8")[-3000:]

    def until_ready(self, process: subprocess.Popen[str], port: str, workload: str, name: str, index: int = 0) -> None:
        """By the container's own readiness probe."""
        probe = self.containers[workload, name].spec["readinessProbe"]
        if "grpc" in probe:
            address = f"grpc://127.0.0.1:{port}/{probe['grpc']['service']}"
        else:
            address = f"http://127.0.0.1:{port}{probe['httpGet']['path']}"
        end = time.monotonic() + 180
        while why_unhealthy(address):
            assert process.poll() is None and time.monotonic() < end, (
                f"{why_unhealthy(address)}\n{self.log(name, index)}"
            )
            time.sleep(0.2)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


def test_the_rendered_commands_run(cluster: Cluster) -> None:
    redis, port = cluster.begin("redis", "redis")
    end = time.monotonic() + 20
    while socket.socket().connect_ex(("127.0.0.1", int(port))):
        assert redis.poll() is None and time.monotonic() < end, cluster.log("redis")
        time.sleep(0.1)
    started = [("embedder", "embedder", 0), ("shard-a", "shard", 0), ("shard-a", "shard", 1), ("router", "router", 0)]
    begun = [
        (*cluster.begin(workload, name, *FAST.get(name, ()), index=index), workload, name, index)
        for workload, name, index in started
    ]
    cluster.finish("build", "--limit-documents=8", "--dtype=float32")
    for process, own_port, workload, name, index in begun:
        cluster.until_ready(process, own_port, workload, name, index)
    cluster.finish("publish")
    cluster.finish("swap")
    generator, own_port = cluster.begin("generator", "generator", *FAST["generator"])
    cluster.until_ready(generator, own_port, "generator", "generator")
    small = ["corpus.max_documents=6", "steps=2", "optimiser.warmup_steps=1", "evaluation.sequences=4"]
    ranks = [cluster.begin("train", "train", *(f"--set={each}" for each in small), index=rank)[0] for rank in (0, 1)]
    assert [rank.wait(240) for rank in ranks] == [0, 0], cluster.log("train") + cluster.log("train", 1)
    assert (cluster.folder / "files" / "runs" / "tiny" / "model" / "config.json").exists()
