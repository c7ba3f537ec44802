"""The overlays as kustomize renders them, and the containers in them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("single-node", "gpu", "production")
# What the cluster gives, as it is on the machine of the tests.
PROVIDED = {"POD_IP": "127.0.0.1", "POD_INDEX": "0", "JOB_COMPLETION_INDEX": "0"}
Document = dict[str, Any]


def kubectl() -> str:
    beside = Path(sys.executable).parent / "kubectl"
    return str(beside) if beside.exists() else shutil.which("kubectl") or "kubectl"


def render(folder: Path) -> list[Document]:
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


@dataclass
class Container:
    """One container of one workload, with `$(NAME)` replaced by a value such as the cluster gives."""

    where: str
    workload: Document
    spec: Document
    sidecar: bool

    @property
    def variables(self) -> dict[str, str]:
        """Those with a value: of the manifest, or one such as the cluster gives. Not those out of a Secret."""
        given = {each["name"]: each.get("value") or PROVIDED.get(each["name"]) for each in self.spec.get("env", [])}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def words(self) -> list[str]:
        values = PROVIDED | self.variables
        return [
            re.sub(r"\$\((\w+)\)", lambda found: values.get(found[1], found[0]), word)
            for word in [*self.spec["command"], *self.spec.get("args", [])]
        ]

    @property
    def module(self) -> str:
        return self.words[2] if self.words[:2] == ["python", "-m"] else ""

    @property
    def secret_files(self) -> dict[str, tuple[str, str]]:
        """The Secret and the key of each file that is mounted from one."""
        volumes = {each["name"]: each for each in self.workload["spec"]["template"]["spec"].get("volumes", [])}
        files = {}
        for mount in self.spec.get("volumeMounts", []):
            secret = volumes.get(mount["name"], {}).get("secret", {})
            for item in secret.get("items", []):
                files[f"{mount['mountPath']}/{item['path']}"] = (secret["secretName"], item["key"])
        return files


def containers(documents: list[Document]) -> Iterator[Container]:
    for document in documents:
        template = document.get("spec", {}).get("template")
        if template is None:
            continue
        for kind in ("containers", "initContainers"):
            for spec in template["spec"].get(kind, []):
                where = f"{document['kind']} {document['metadata']['name']}, {spec['name']}"
                yield Container(where, document, spec, kind == "initContainers")
