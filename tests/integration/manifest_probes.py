"""Probes in the manifests: each asks a port, a service or a path that is there, with TLS where that is served."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from string import Template
from typing import Any
from urllib.parse import urlsplit

from manifest_security import named_files
from manifests import ROOT, Container, Document

from openbook_core.health import TIMEOUT_S

SERVICES = {"openbook_embedder": "Embedder", "openbook_retriever": "Retriever", "openbook_generator": None}


def probe_complaints(container: Container, config: Any, ports: dict[str, int]) -> Iterator[str]:
    """`config`: of a service of ours, else None."""
    if container.workload["kind"] == "Job":
        return
    needed = ("startupProbe",) if container.sidecar else ("readinessProbe", "livenessProbe")
    yield from (f"has no {kind}" for kind in needed if kind not in container.spec)
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container.spec.get(kind, {})
        wrong: Iterator[str] = iter(())
        if "grpc" in probe:
            wrong = _grpc(container, config, probe["grpc"], ports)
        elif "httpGet" in probe:
            wrong = _http(config, probe["httpGet"], ports)
        elif "exec" in probe and config is not None:
            wrong = _health(container, config, probe)
        yield from (f"{kind}: {each}" for each in wrong)


def _grpc(container: Container, config: Any, probe: Document, ports: dict[str, int]) -> Iterator[str]:
    service = f"openbook_proto.v1.{SERVICES.get(container.module)}"
    if probe["port"] != ports.get("grpc"):
        yield f"port {probe['port']} is not served"
    if probe.get("service", service) != service:
        yield f"no service {probe['service']}"
    if config is not None and config.tls_certificate is not None:
        yield "a grpc probe knows no TLS, which is served here"


def _http(config: Any, probe: Document, ports: dict[str, int]) -> Iterator[str]:
    if probe["port"] not in ports:
        yield f"no port {probe['port']}"
    if probe["path"] not in http_paths():
        yield f"no path {probe['path']}"
    scheme = "HTTP" if config is None or config.tls_certificate is None else "HTTPS"
    if probe.get("scheme", "HTTP") != scheme:
        yield f"scheme {probe.get('scheme', 'HTTP')}, {scheme} is served"


def _health(container: Container, config: Any, probe: Document) -> Iterator[str]:
    words = health_command(container, probe)
    if words[:3] != ["python", "-m", "openbook_core.health"] or len(words) != 4:
        yield f"{' '.join(words)} is no check of ours"
        return
    address = urlsplit(words[3])
    scheme = "grpc" if config.tls_certificate is None else "grpcs"
    if address.scheme != scheme:
        yield f"asks {address.scheme}://, {scheme}:// is served"
    if scheme == "grpcs" and "tls_ca" not in dict(named_files(container)):
        yield "OPENBOOK_TLS_CA is not set, which the check needs"
    host = "127.0.0.1" if config.host == "0.0.0.0" else config.host
    if address.netloc != f"{host}:{config.port}":
        yield f"asks {address.netloc}, served is {host}:{config.port}"
    service = f"/openbook_proto.v1.{SERVICES[container.module]}"
    if address.path not in ("", service):
        yield f"no service {address.path.strip('/')}"
    if probe.get("timeoutSeconds", 1) <= TIMEOUT_S:
        yield f"timeoutSeconds has to be more than the {TIMEOUT_S:g} s that the check waits"


def health_command(container: Container, probe: Document) -> list[str]:
    """What an exec probe runs in the end. Only a shell sees the variables: the kubelet fills in no field of the pod."""
    command: list[str] = probe["exec"]["command"]
    if command[:2] == ["sh", "-c"]:
        command = shlex.split(Template(command[2].removeprefix("exec ")).safe_substitute(container.variables))
    return command


def http_paths() -> set[str]:
    text = (ROOT / "services" / "generator" / "openbook_generator" / "api.py").read_text(encoding="utf-8")
    return set(re.findall(r"@app\.get\(\"([^\"]+)\"", text))
