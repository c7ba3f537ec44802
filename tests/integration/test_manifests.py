"""deploy/: every overlay is rendered, validated, held against the programs, and its commands are started."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from torch.distributed.run import get_args_parser

sys.path.insert(0, str(Path(__file__).parent))
from manifest_checks import K8S, OVERLAYS, ROOT, complaints, containers, render


@pytest.fixture(scope="module")
def rendered() -> dict[str, list]:
    return {overlay: render(K8S / "overlays" / overlay) for overlay in OVERLAYS}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_an_overlay_is_valid(rendered: dict[str, list], overlay: str, version: str) -> None:
    for document in rendered[overlay]:
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):  # no part of Kubernetes
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_says_what_the_programs_take(rendered: dict[str, list], overlay: str, tmp_path: Path) -> None:
    assert complaints(rendered[overlay], tmp_path) == []
    kinds = {document["kind"] for document in rendered[overlay]}
    assert {"StatefulSet", "Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget"} <= kinds
    if overlay == "production":
        assert {"HorizontalPodAutoscaler", "ServiceMonitor"} <= kinds


@pytest.mark.parametrize(
    ("was", "becomes", "complaint"),
    [
        ("--metrics-port=9100", "--metric-port=9100", "unrecognized arguments: --metric-port=9100"),
        ("--port=8000", "--port=8001", "listens on 8001"),
        ("--port=7000", "--port=70000", "port"),
        ("--role=router", "--role=routr", "role"),
        ("--out=/snapshots/factbook", "--outt=/snapshots/factbook", "--outt"),
        ("--nproc-per-node=1", "--nproc-per-knode=1", "nproc-per-knode"),
        ("--config=/etc", "--confg=/etc", "--confg"),
        ("redis://redis:6379", "redis://rediss:6379", "no service rediss"),
        ("OPENBOOK_REDIS_PASSWORD", "OPENBOOK_REDIS_PASWORD", "no program reads OPENBOOK_REDIS_PASWORD"),
        ("path: /readyz", "path: /ready", "no path /ready"),
        (
            "service: openbook_proto.v1.Embedder",
            "service: openbook_proto.v1.Embed",
            "no service openbook_proto.v1.Embed",
        ),
        ("openbook_generator_queued", "openbook_generator_queue", "no metric openbook_generator_queue"),
        ('value: "2"', 'value: "3"', "MEMBER_COUNT is 3"),
        ("steps: 60", "stepps: 60", "stepps"),
        ("port: metrics", "port: metric", "no service has a port metric"),
    ],
)
def test_a_wrong_word_is_caught(tmp_path: Path, was: str, becomes: str, complaint: str) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    changed = 0
    for path in (tmp_path / "k8s").rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        changed += was in text
        path.write_text(re.sub(rf"{re.escape(was)}(?!\w)|{re.escape(was)}(?=/)", becomes, text), encoding="utf-8")
    assert changed
    found = complaints(render(tmp_path / "k8s" / "overlays" / "production"), tmp_path)
    assert any(complaint in each for each in found), found


def test_the_shard_cache_copies_what_is_published(rendered: dict[str, list], tmp_path: Path) -> None:
    sidecars = [each for overlay in OVERLAYS for each in containers(rendered[overlay]) if each.sidecar]
    sidecar = sidecars[0]
    assert all(each.words == sidecar.words for each in sidecars)
    published, local = tmp_path / "published", tmp_path / "local"
    (published / "book").mkdir(parents=True)
    local.mkdir()
    (published / "book" / "rows").write_text("rows")
    (published / "book" / "manifest.json").write_text("{}")
    (published / "unfinished").mkdir()
    words = [word.replace("/published", str(published)).replace("/snapshots", str(local)) for word in sidecar.words]
    process = subprocess.Popen(words)
    try:
        subprocess.run(["timeout", "20", "sh", "-c", f"until test -e {local}/.looked; do sleep 0.1; done"], check=True)
    finally:
        process.terminate()
        process.wait(10)
    assert (local / "book" / "rows").read_text() == "rows"
    assert sorted(path.name for path in local.iterdir()) == [".looked", "book"]


def test_compose_and_images_say_what_the_programs_take() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for name in ("shard", "router"):
        program = importlib.import_module("openbook_retriever.__main__")
        assert program.parse_args(compose[name]["command"]).role == name
    for name, service in compose.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        if name != "redis":
            assert (ROOT / service.get("build", {}).get("dockerfile", "deploy/docker/retriever.Dockerfile")).is_file()
    launch = get_args_parser().parse_args(compose["trainer"]["command"])
    assert launch.module and launch.training_script == "openbook_trainer"
    words = [word.replace("/examples", str(ROOT / "examples")) for word in launch.training_script_args]
    command = [sys.executable, "-m", launch.training_script, *words, "--print-config"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and "router:7000" in shown.stdout, shown.stderr
    for name in ("embedder", "retriever", "generator"):
        text = (ROOT / "deploy" / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8")
        command = json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[0])
        program = importlib.import_module(f"openbook_{name}.__main__")
        assert str(program.parse_args(command).port) in re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE)[0].split()


def test_dockerfiles_are_clean() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")  # make setup puts it there
    files = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
    assert files
    subprocess.run([str(hadolint), *map(str, files)], check=True)
