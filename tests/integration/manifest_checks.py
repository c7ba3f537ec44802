"""What a rendered manifest says, held against the programs: options, ports, variables, probes, metrics, names."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer
from manifest_monitors import monitor_complaints
from manifest_probes import probe_complaints
from manifest_security import agreement_complaints, file_complaints, secret_complaints
from manifests import PROVIDED, ROOT, Container, Document, containers
from prometheus_client import REGISTRY
from torch.distributed.run import get_args_parser
from typer._click.exceptions import ClickException

IMAGES = {"openbook_embedder": "embedder", "openbook_retriever": "retriever", "openbook_generator": "generator"}


def complaints(documents: list[Document], folder: Path) -> list[str]:
    """Everything that is wrong, one line each; `folder` is for scratch files."""
    wrong, configs = [], {}
    for container in containers(documents):
        try:
            if container.module:
                configs[container.where] = _service(container)
            config = configs.get(container.where)
            wrong += [f"{container.where}: {each}" for each in _container(container, config, documents, folder)]
        except (SystemExit, ClickException, Exception) as error:
            wrong.append(f"{container.where}: {type(error).__name__}: {getattr(error, 'message', error)}")
    wrong += agreement_complaints(documents, configs)
    return [*wrong, *secret_complaints(documents), *monitor_complaints(documents, configs), *_names(documents)]


def _container(container: Container, config: Any, documents: list[Document], folder: Path) -> Iterator[str]:
    words, spec = container.words, container.spec
    ports = {port["name"]: port["containerPort"] for port in spec.get("ports", [])}
    if container.module:
        yield from _ports(config, ports)
        if not spec["image"].startswith(f"openbook/{IMAGES[container.module]}:"):
            yield f"image {spec['image']} does not hold {container.module}"
    elif words[0] == "torchrun":
        _torchrun(words[1:], documents, folder)
    elif words[0] == "openbook":
        parse_openbook(words[1:])
    elif words[0] != "sh":
        yield f"{words[0]} is no program of ours"
    for inner in re.findall(r"openbook (db [^\"$)|;]+)", words[-1] if words[0] == "sh" else ""):
        if "id" not in inner.split():
            parse_openbook([*inner.split(), "a-snapshot", "--router", "router:7000"])
    yield from _variables(container)
    yield from probe_complaints(container, config, ports)
    yield from file_complaints(container)
    yield from _mounts(spec)
    if "memory" not in spec["resources"]["limits"] or not {"cpu", "memory"} <= set(spec["resources"]["requests"]):
        yield "requests of cpu and memory and a limit of memory are needed"
    if not spec["securityContext"]["readOnlyRootFilesystem"]:
        yield "the root file system is writable"


def _service(container: Container) -> Any:
    """The configuration that the program itself makes of the options and variables."""
    program = importlib.import_module(f"{container.module}.__main__")
    said = StringIO()
    try:
        with redirect_stderr(said), patch.dict(os.environ, container.variables):
            return program.parse_args(container.words[3:])
    except SystemExit as error:
        raise ValueError(said.getvalue().strip().splitlines()[-1]) from error


def _torchrun(options: list[str], documents: list[Document], folder: Path) -> None:
    from openbook_trainer.config import load_train_config

    said = StringIO()
    try:
        with redirect_stderr(said):
            parsed = get_args_parser().parse_args(options)
    except SystemExit as error:
        raise ValueError(said.getvalue().strip().splitlines()[-1]) from error
    assert parsed.module and parsed.training_script == "openbook_trainer", parsed.training_script
    job = next(each for each in documents if each["kind"] == "Job" and each["metadata"]["name"] == "train")
    assert str(parsed.nnodes) == str(job["spec"]["completions"]) == str(job["spec"]["parallelism"])
    config, overrides = "", []
    for option in parsed.training_script_args:
        name, _, value = option.partition("=")
        if name == "--config":
            config = value
        elif name == "--set":
            overrides.append(value)
        else:
            raise ValueError(f"openbook_trainer has no option {option}")
    load_train_config(train_config(documents, Path(config).name, folder), overrides)


def train_config(documents: list[Document], name: str, folder: Path) -> Path:
    held = next(each for each in documents if each["kind"] == "ConfigMap" and name in each["data"])
    (folder / name).write_text(held["data"][name], encoding="utf-8")
    return folder / name


def parse_openbook(words: list[str]) -> None:
    """Raises what the real command line raises, without running the verb."""
    from openbook_cli.main import app

    command: Any = typer.main.get_command(app)
    context = command.make_context("openbook", list(words))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


def _ports(config: Any, ports: dict[str, int]) -> Iterator[str]:
    if config.port not in (ports.get("grpc"), ports.get("http")):
        yield f"listens on {config.port}, the manifest names {ports}"
    if getattr(config, "metrics_port", None) != ports.get("metrics"):
        yield f"metrics are on {getattr(config, 'metrics_port', None)}, the manifest names {ports.get('metrics')}"


def _mounts(spec: Document) -> Iterator[str]:
    """With a read-only root, what an image writes to has to be mounted."""
    found = re.match(r"openbook/(\w+):", spec["image"])
    if found and spec["command"][0] != "sh":
        image = (ROOT / "deploy" / "docker" / f"{found[1]}.Dockerfile").read_text(encoding="utf-8")
        written = set(re.findall(r"(?:HOME|OPENBOOK_CACHE)=(/\S+)", image))
        missing = written - {each["mountPath"] for each in spec["volumeMounts"]}
        yield from (f"{path} is written to and not mounted" for path in sorted(missing))


def known_variables() -> set[str]:
    """Those that the sources read."""
    texts = "".join(
        path.read_text() for part in ("libs", "services", "trainer") for path in (ROOT / part).rglob("*.py")
    )
    return set(re.findall(r"\"(OPENBOOK_[A-Z_]+)\"", texts))


def _variables(container: Container) -> Iterator[str]:
    given = {each["name"] for each in container.spec.get("env", [])}
    yield from (f"no program reads {name}" for name in sorted(given - known_variables() - {*PROVIDED, "MEMBER_COUNT"}))
    written = set(re.findall(r"\$\((\w+)\)", " ".join(container.spec.get("args", []))))
    yield from (f"$({name}) is not set" for name in sorted(written - given - {"JOB_COMPLETION_INDEX"}))
    count = next((each["value"] for each in container.spec.get("env", []) if each["name"] == "MEMBER_COUNT"), None)
    if count is not None and int(count) != container.workload["spec"]["replicas"]:
        yield f"MEMBER_COUNT is {count}, replicas are {container.workload['spec']['replicas']}"


def metric_names() -> set[str]:
    from openbook_embedder.metrics import EmbedderMetrics
    from openbook_generator.metrics import Metrics

    if "openbook_embedder_queue_texts" not in REGISTRY._names_to_collectors:
        EmbedderMetrics()
    return {
        sample.name
        for registry in (REGISTRY, Metrics().registry)
        for each in registry.collect()
        for sample in each.samples
    }


def _names(documents: list[Document]) -> Iterator[str] | list[str]:
    """Services, policies, budgets, autoscalers and monitors point at what is there."""
    wrong, have = [], {(each["kind"], each["metadata"]["name"]) for each in documents}
    pods = [each["spec"]["template"] for each in documents if "template" in each.get("spec", {})]
    for document in documents:
        kind, name, spec = document["kind"], document["metadata"]["name"], document.get("spec", {})
        chosen = {"Service": spec.get("selector"), "PodDisruptionBudget": spec.get("selector", {}).get("matchLabels")}
        chosen["NetworkPolicy"] = spec.get("podSelector", {}).get("matchLabels")
        labels = chosen.get(kind)
        if labels and not any(labels.items() <= pod["metadata"]["labels"].items() for pod in pods):
            wrong.append(f"{kind} {name}: no pod has {labels}")
        if kind == "HorizontalPodAutoscaler":
            target = (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
            wrong += [] if target in have else [f"{kind} {name}: no {target}"]
            for metric in spec["metrics"]:
                if metric["pods"]["metric"]["name"] not in metric_names():
                    wrong.append(f"{kind} {name}: no metric {metric['pods']['metric']['name']}")
        if kind == "StatefulSet" and ("Service", spec["serviceName"]) not in have:
            wrong.append(f"{kind} {name}: no service {spec['serviceName']}")
    services = {name for kind, name in have if kind == "Service"}
    for container in containers(documents):
        for host in re.findall(r"(?:=|//|\s)([a-z][a-z0-9-]*):\d{4}", " ".join(container.words)):
            if host not in services:
                wrong.append(f"{container.where}: no service {host}")
    return wrong


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", **more}
