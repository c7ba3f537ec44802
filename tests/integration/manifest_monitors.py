"""ServiceMonitors, which are no part of Kubernetes: their fields, and that they find the numbers they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from manifest_security import named_files
from manifests import Container, Document, containers


def _closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


_TEXT = {"type": "string", "minLength": 1}
_LABELS = {"type": "object", "minProperties": 1, "additionalProperties": _TEXT}
# As monitoring.coreos.com/v1 has them, those that are used here.
SCHEMA = _closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "ServiceMonitor"},
    metadata=_closed(["name"], name=_TEXT, namespace=_TEXT, labels=_LABELS),
    spec=_closed(
        ["selector", "endpoints"],
        selector=_closed(["matchLabels"], matchLabels=_LABELS),
        endpoints={
            "type": "array",
            "minItems": 1,
            "items": _closed(
                ["port", "path", "interval"],
                port=_TEXT,
                path={"const": "/metrics"},
                interval={"type": "string", "pattern": "^[1-9][0-9]*(ms|s|m|h)$"},
                scheme={"enum": ["http", "https"]},
                tlsConfig=_closed(
                    ["ca", "serverName"],
                    ca=_closed(["secret"], secret=_closed(["name", "key"], name=_TEXT, key=_TEXT)),
                    serverName=_TEXT,
                ),
            ),
        },
    ),
)


def monitor_complaints(documents: list[Document], configs: dict[str, Any]) -> Iterator[str]:
    """`configs`: of each service, by `Container.where`."""
    for document in documents:
        if document["kind"] != "ServiceMonitor":
            continue
        where = f"ServiceMonitor {document['metadata']['name']}"
        wrong = [error.message for error in Draft202012Validator(SCHEMA).iter_errors(document)]
        yield from (f"{where}: {each}" for each in wrong or _finds(document["spec"], documents, configs))


def _finds(spec: Document, documents: list[Document], configs: dict[str, Any]) -> Iterator[str]:
    labels = spec["selector"]["matchLabels"].items()
    chosen = [
        each for each in documents if each["kind"] == "Service" and labels <= each["metadata"].get("labels", {}).items()
    ]
    if not chosen:
        yield f"no service has {dict(labels)}"
    for endpoint in spec["endpoints"]:
        for service in chosen:
            target = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}.get(endpoint["port"])
            if target is None:
                yield f"no service has a port {endpoint['port']}: {service['metadata']['name']}"
            for container in _behind(service, documents, configs) if target else ():
                yield from _scheme(endpoint, target, container, configs[container.where])


def _behind(service: Document, documents: list[Document], configs: dict[str, Any]) -> list[Container]:
    """The containers of ours that a service leads to."""
    return [
        each
        for each in containers(documents)
        if each.where in configs
        and service["spec"]["selector"].items() <= each.workload["spec"]["template"]["metadata"]["labels"].items()
    ]


def _scheme(endpoint: Document, target: str, container: Container, config: Any) -> Iterator[str]:
    """A port for metrics alone is plain HTTP."""
    scheme = "https" if target != "metrics" and config.tls_certificate is not None else "http"
    if endpoint.get("scheme", "http") != scheme:
        yield f"asks by {endpoint.get('scheme', 'http')}, {container.where} serves {scheme}"
    if (scheme == "https") != ("tlsConfig" in endpoint):
        yield f"{'no' if scheme == 'https' else 'a'} tlsConfig for {scheme}"
    elif scheme == "https":
        secret = endpoint["tlsConfig"]["ca"]["secret"]
        trusted = container.secret_files.get(dict(named_files(container)).get("tls_ca", ""))
        if trusted != (secret["name"], secret["key"]):
            yield f"trusts {secret}, the pods trust {trusted}"
        name = container.variables.get("OPENBOOK_TLS_SERVER_NAME")
        if endpoint["tlsConfig"]["serverName"] != name:
            yield f"expects the name {endpoint['tlsConfig']['serverName']}, the pods {name}"
