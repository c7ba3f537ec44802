"""deploy/: every overlay is rendered, validated, held against the programs, and its commands are started."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from torch.distributed.run import get_args_parser

sys.path.insert(0, str(Path(__file__).parent))
from manifest_checks import complaints
from manifest_security import asked_secrets, made_secrets
from manifests import K8S, OVERLAYS, ROOT, containers, render


@pytest.fixture(scope="module")
def rendered() -> dict[str, list]:
    return {overlay: render(K8S / "overlays" / overlay) for overlay in OVERLAYS}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_an_overlay_is_valid(rendered: dict[str, list], overlay: str, version: str) -> None:
    for document in rendered[overlay]:
        if document["kind"] != "ServiceMonitor":  # no part of Kubernetes; see manifest_monitors
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
        ("openbook_generator_queued", "openbook_generator_queue", "no metric openbook_generator_queue"),
        ('value: "2"', 'value: "3"', "MEMBER_COUNT is 3"),
        ("steps: 60", "stepps: 60", "stepps"),
        ("port: metrics", "port: metric", "no service has a port metric"),
        (
            "--tls-key=/secrets/tls/tls.key",
            "--tls-key=/secrets/tls/tls.kei",
            "tls_key: no Secret is mounted with /secrets",
        ),
        ("--tokens=/secrets", "--tokens=/secret", "tokens: no Secret is mounted with /secret/"),
        ("--tls-certificate=", "--tls-certifikate=", "unrecognized arguments: --tls-certifikate"),
        (
            "value: /secrets/tls/ca.crt",
            "value: /secrets/tls/ca.pem",
            "tls_ca: no Secret is mounted with /secrets/tls/ca.pem",
        ),
        ("OPENBOOK_TOKEN_FILE", "OPENBOOK_TOKENFILE", "calls services and has no token_file"),
        ("OPENBOOK_TLS_CA", "OPENBOOK_TLS_KA", "OPENBOOK_TLS_CA is not set, which the check needs"),
        (
            "mountPath: /secrets/tokens",
            "mountPath: /secrets/token",
            "/secrets/token/tokens.jsonl is mounted and not used",
        ),
        ("key: reader.token", "key: readr.token", "no Secret openbook-tokens is made with a key readr.token"),
        ("secretName: openbook-tls", "secretName: openbook-tsl", "no Secret openbook-tsl is made with a key tls.key"),
        ("grpc: null", "tcpSocket: null", "a grpc probe knows no TLS"),
        ("grpcs://127", "grpc://127", "asks grpc://, grpcs:// is served"),
        ("grpcs://127.0.0.1:7001", "grpcs://127.0.0.1:7002", "asks 127.0.0.1:7002, served is 127.0.0.1:7001"),
        ("grpcs://$POD_IP", "grpcs://$POD_IPP", "asks $POD_IPP:7000, served is 127.0.0.1:7000"),
        ("[sh, -c, 'exec python -m", "[sh, -c, 'exec pyhton -m", "is no check of ours"),
        ("openbook_core.health", "openbook_core.helth", "is no check of ours"),
        ('/openbook_proto.v1.Retriever"', '/openbook_proto.v1.Retriver"', "no service openbook_proto.v1.Retriver"),
        (
            "timeoutSeconds: 5\n          volumeMounts",
            "timeoutSeconds: 3\n          volumeMounts",
            "livenessProbe: timeoutSeconds has",
        ),
        ("scheme: HTTPS", "scheme: HTTP", "scheme HTTP, HTTPS is served"),
        (
            "value: https",
            "value: http",
            "ServiceMonitor generator: asks by http, Deployment generator, generator serves https",
        ),
        ("tlsConfig", "tlsConfg", "Additional properties are not allowed ('tlsConfg' was unexpected)"),
        ("serverName: openbook", "serverName: openboook", "expects the name openboook, the pods openbook"),
        ("key: ca.crt}}", "key: tls.crt}}", "trusts {'key': 'tls.crt'"),
        ("interval: 15s", "intervall: 15s", "'intervall' was unexpected"),
        ("interval: 15s", "interval: 15", "15 is not of type 'string'"),
        (
            "{app.kubernetes.io/component: generator}\n  endpoints",
            "{app.kubernetes.io/component: genrator}\n  endpoints",
            "ServiceMonitor generator: no service has {'app",
        ),
    ],
)
def test_a_wrong_word_is_caught(tmp_path: Path, was: str, becomes: str, complaint: str) -> None:
    found = complaints_after(tmp_path, "production", was, becomes)
    assert any(complaint in each for each in found), found


@pytest.mark.parametrize(
    ("was", "becomes", "complaint"),
    [
        (
            "service: openbook_proto.v1.Embedder",
            "service: openbook_proto.v1.Embed",
            "no service openbook_proto.v1.Embed",
        ),
        ("grpc: {port: 7000", "grpc: {port: 7001", "port 7001 is not served"),
    ],
)
def test_a_wrong_probe_without_tls_is_caught(tmp_path: Path, was: str, becomes: str, complaint: str) -> None:
    found = complaints_after(tmp_path, "single-node", was, becomes)
    assert any(complaint in each for each in found), found


def complaints_after(folder: Path, overlay: str, was: str, becomes: str) -> list[str]:
    """Those about an overlay in which one thing is written otherwise."""
    shutil.copytree(K8S, folder / "k8s")
    changed = 0
    for path in (folder / "k8s").rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        changed += was in text
        path.write_text(re.sub(rf"{re.escape(was)}(?!\w)|{re.escape(was)}(?=/)", becomes, text), encoding="utf-8")
    assert changed
    return complaints(render(folder / "k8s" / "overlays" / overlay), folder)


def test_a_service_without_what_the_others_ask_for_is_caught(rendered: dict[str, list], tmp_path: Path) -> None:
    documents = deepcopy(rendered["production"])
    embedder = next(each for each in containers(documents) if each.module == "openbook_embedder")
    embedder.spec["args"] = [each for each in embedder.spec["args"] if not each.startswith("--t")]
    found = complaints(documents, tmp_path)
    for served in ("tls_certificate", "tokens"):
        assert f"{embedder.where}: serves without {served}, others with it" in found
    assert any("asks grpcs://, grpc:// is served" in each for each in found)
    job = next(each for each in containers(documents) if each.workload["metadata"]["name"] == "swap")
    job.spec["env"] = []
    assert f"{job.where}: calls services and has no tls_ca" in complaints(documents, tmp_path)


def test_every_secret_that_is_made_is_used(rendered: dict[str, list]) -> None:
    assert asked_secrets(rendered["production"]) == made_secrets()
    for overlay in ("single-node", "gpu"):
        assert asked_secrets(rendered[overlay]) == {"openbook-redis": {"password"}}


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
