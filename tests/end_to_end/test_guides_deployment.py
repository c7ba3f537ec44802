"""The guides to containers and Kubernetes: ```sh blocks run, or are what `make check` runs; the others are held against the
programs, the compose file and the manifests, with kubectl's own offline modes where it has them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from typer._click.exceptions import ClickException

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from manifest_checks import known_variables, parse_openbook
from manifest_probes import http_paths
from manifest_security import asked_secrets, make_secrets
from manifests import K8S, OVERLAYS, ROOT, Document, kubectl, render

COMPOSE = "deploy/docker/compose.yaml"


def commands(guide: str, kind: str) -> list[str]:
    """The lines of its ```sh blocks, or of its plain ones; without the section whose test runs it."""
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text(encoding="utf-8")
    text = re.sub(r"^## Certificates and tokens$.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [line for found, block in blocks if found == kind for line in block.splitlines()]


def recipe(target: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.splitlines()


def test_what_the_guides_run_is_run_by_the_checks() -> None:
    lines = [*commands("containers", "sh"), *commands("kubernetes", "sh")]
    checked = recipe("check")
    for line in lines:
        match shlex.split(line):
            case ["make", target]:
                for step in recipe(target):
                    # A test file is run with all the others, whatever the options.
                    whole, _, file = program(step).partition(" tests/")
                    assert any(line == step or (file and program(line).startswith(whole)) for line in checked), step
                    assert not file or (ROOT / "tests" / file).is_file()
            case ["kubectl", "kustomize", folder]:
                assert run_kubectl("kustomize", folder).startswith("apiVersion")
            case _:
                raise AssertionError(f"{line}: not run by anything")
    assert {"make image-smoke", "make manifests"} <= set(lines)


def program(line: str) -> str:
    """The command line without the variables before it."""
    return re.sub(r"^(\w+=\S* )+", "", line)


def run_kubectl(*words: str) -> str:
    """Without a cluster: it finds no configuration."""
    environment = {**os.environ, "KUBECONFIG": os.devnull}
    done = subprocess.run(
        [kubectl(), *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_compose(line: str, services: dict[str, Document]) -> None:
    match shlex.split(line):
        case ["export", setting]:
            name = setting.partition("=")[0]
            assert name in known_variables() and name in services["router"]["environment"]
        case ["docker", "compose", "-f", file, "up", "--build", "--wait"]:
            assert file == COMPOSE
        case ["docker", "compose", "-f", file, "run", "--rm", "cli", *words]:
            assert file == COMPOSE
            parse_openbook(words)
            mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in services["cli"]["volumes"]}
            for path in re.findall(r"(?<!\S)/\S+", line):
                top = "/" + path.split("/")[1]
                assert top in mounted, f"{path} is no volume of cli"
                if mounted[top].startswith("."):
                    assert (ROOT / COMPOSE).parent.joinpath(mounted[top], path.removeprefix(top + "/")).exists(), path
            for host, port in re.findall(r"(?<!\S)([a-z]+):(\d+)", line):
                assert port in services[host]["command"], f"{host} does not listen on {port}"
        case ["curl", address]:
            place, _, path = address.partition("/")
            assert f"/{path}" in http_paths() and f"{place}:8000" in services["generator"]["ports"]
        case _:
            raise ValueError(f"{line}: not known here")


def test_the_containers_guide_says_what_is_there() -> None:
    text = (ROOT / COMPOSE).read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]
    lines = commands("containers", "") + re.findall(r"^# .*?(docker compose .*)$", text, re.MULTILINE)
    assert sum("run --rm cli" in line for line in lines) == 4
    for line in lines:
        check_compose(line, services)
    written = (
        "docker compose -f deploy/docker/compose.yaml run --rm cli db build /examples/factbook/2015-11-18.jsonl.zst"
    )
    for wrong in (
        f"{written} --out /snapshots/2015 --databse factbook",
        f"{written} --out /snapshot/2015 --database factbook",
        f"{written.replace('2015-11', '1815-11')} --out /snapshots/2015 --database factbook",
        "docker compose -f deploy/docker/compose.yaml run --rm cli db list --router router:7001",
        "curl 127.0.0.1:8000/ready",
    ):
        with pytest.raises((AssertionError, ClickException)):
            check_compose(wrong, services)


def check_kubectl(line: str, rendered: list[Document], folder: Path) -> None:
    match shlex.split(line):
        case ["kubectl", "create", "namespace", name]:
            assert json.loads(run_kubectl("create", "namespace", name, "--dry-run=client", "-o", "json"))
            assert {each["metadata"]["namespace"] for each in rendered} == {name}
        case ["kubectl", "-n", "openbook", "create", "secret", *words]:
            made = json.loads(run_kubectl("create", "secret", *words, "--dry-run=client", "-o", "json"))
            assert asked_secrets(rendered)[made["metadata"]["name"]] == set(made["data"])
        case ["kubectl", "apply", "-k", overlay]:
            assert overlay.startswith("deploy/k8s/overlays/") and run_kubectl("kustomize", overlay)
        case ["kubectl", "-n", "openbook", "patch", "job", name, "-p", patch]:
            (job,) = (each for each in rendered if each["kind"] == "Job" and each["metadata"]["name"] == name)
            (folder / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
            asked = ("patch", "--local", "-f", str(folder / "job.yaml"), "-p", patch, "-o", "json")
            assert job["spec"]["suspend"] is True and json.loads(run_kubectl(*asked))["spec"]["suspend"] is False
        case _:
            raise ValueError(f"{line}: not known here")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_kubernetes_guide_says_what_is_there(overlay: str, tmp_path: Path) -> None:
    rendered = render(K8S / "overlays" / overlay)
    lines = commands("kubernetes", "")
    assert len(lines) == 6
    for line in lines:
        check_kubectl(line, rendered, tmp_path)
    for wrong in (
        """kubectl -n openbook patch job build -p '{"spec": {"suspended": false}}'""",
        """kubectl -n openbook patch job built -p '{"spec": {"suspend": false}}'""",
        "kubectl -n openbook create secret generic openbook-redis --from-literal=pasword=...",
        "kubectl create namespace openbok",
        "kubectl apply -k deploy/k8s/overlays/single",
    ):
        with pytest.raises((AssertionError, ValueError)):
            check_kubectl(wrong, rendered, tmp_path)


def test_the_secrets_are_made_as_the_guide_says(tmp_path: Path) -> None:
    made = make_secrets(tmp_path / "made")
    asked = asked_secrets(render(K8S / "overlays" / "production"))
    del asked["openbook-redis"]
    assert {name: set(data) for name, data in made.items()} == asked
    tls, tokens = made["openbook-tls"], made["openbook-tokens"]
    for key in ("reader.token", "operator.token"):
        token = tokens[key].decode().strip()
        assert sha256(token.encode()).hexdigest() in tokens["tokens.jsonl"].decode()
    names = x509.load_pem_x509_certificate(tls["tls.crt"]).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert "openbook" in names.value.get_values_for_type(x509.DNSName)
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "made").iterdir() if path.is_file()} == {0}
