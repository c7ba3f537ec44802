"""Certificates and tokens in the manifests: that each file is mounted from a Secret that is made, and who has to have which."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from manifests import ROOT, Container, Document, containers, kubectl

from openbook_core.security.options import DialOptions, ServerOptions

FILES = sorted(
    name
    for name, field in (ServerOptions.model_fields | DialOptions.model_fields).items()
    if field.annotation == Path | None
)


GUIDE = ROOT / "docs" / "guides" / "kubernetes.md"


def made_secrets() -> dict[str, set[str]]:
    """The keys of each Secret that the guide makes."""
    text = GUIDE.read_text(encoding="utf-8").replace("\\\n", " ")
    made = {}
    for line in re.findall(r"^kubectl .* create secret generic (.*)$", text, re.MULTILINE):
        name, *options = shlex.split(line)
        made[name] = {option.split("=")[1] for option in options}
    return made


def make_secrets(folder: Path) -> dict[str, dict[str, bytes]]:
    """The Secrets of certificates and tokens that the guide's commands make, run as written in `folder`."""
    section = GUIDE.read_text(encoding="utf-8").partition("\n## Certificates and tokens\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    folder.mkdir()
    # In place of a cluster, which would answer with what it has stored; the sixth word is the Secret's name.
    offline = f'kubectl() {{ KUBECONFIG={os.devnull} "{kubectl()}" "$@" --dry-run=client -o json > "$6.json"; }}\n'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "-ec", offline + block]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    made = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return {
        secret["metadata"]["name"]: {key: b64decode(value) for key, value in secret["data"].items()} for secret in made
    }


def asked_secrets(documents: list[Document]) -> dict[str, set[str]]:
    """The keys of each Secret that a variable, a volume or a monitor wants."""
    asked: dict[str, set[str]] = {}

    def look(node: Any) -> None:
        if isinstance(node, dict):
            for key in ("secretKeyRef", "secret"):
                found = node.get(key, {})
                name = found.get("secretName", found.get("name"))
                if name is not None:
                    keys = {item["key"] for item in found.get("items", [])} | {found.get("key")} - {None}
                    asked.setdefault(name, set()).update(keys)
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            look(child)

    look(documents)
    return asked


def named_files(container: Container) -> list[tuple[str, str]]:
    """Each setting that is a file of certificates or tokens, by option or by variable, with the path it is given."""
    line = " ".join(container.words)
    named = [(name, path) for name in FILES for path in re.findall(rf"--{name.replace('_', '-')}[= ](\S+)", line)]
    with patch.dict(os.environ, container.variables):
        for settings in (ServerOptions.parse({}), DialOptions.parse({})):
            named += [(name, str(value)) for name, value in settings if isinstance(value, Path)]
    return named


def file_complaints(container: Container) -> Iterator[str]:
    held, named = container.secret_files, named_files(container)
    yield from (f"{name}: no Secret is mounted with {path}" for name, path in named if path not in held)
    unused = set(held) - {path for _, path in named}
    yield from (f"{path} is mounted and not used" for path in sorted(unused))
    for volume in container.workload["spec"]["template"]["spec"].get("volumes", []):
        if "secret" in volume and "items" not in volume["secret"]:
            yield f"volume {volume['name']} does not say which keys it takes"


def secret_complaints(documents: list[Document]) -> Iterator[str]:
    made = made_secrets()
    for name, keys in asked_secrets(documents).items():
        yield from (f"no Secret {name} is made with a key {key}" for key in sorted(keys - made.get(name, set())))


def agreement_complaints(documents: list[Document], configs: dict[str, Any]) -> Iterator[str]:
    """Those who call have what those who serve ask for. `configs`: of each service, by `Container.where`."""
    for served, needed in (("tls_certificate", "tls_ca"), ("tokens", "token_file")):
        without = [where for where, config in configs.items() if getattr(config, served) is None]
        if len(without) == len(configs):
            continue
        yield from (f"{where}: serves without {served}, others with it" for where in without)
        for container in containers(documents):
            role = getattr(configs.get(container.where), "role", container.module)
            calls = role in ("router", "openbook_generator") or re.search(
                r"^torchrun|router:", " ".join(container.words)
            )
            if calls and needed not in dict(named_files(container)):
                yield f"{container.where}: calls services and has no {needed}"
