"""The Dockerfiles of this folder as data: the build stage's steps in order, what the last stage runs, what it must not hold."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

INSTALLED = "/opt/openbook"
SOURCE = "/src"
HEAVY = ("torch", "transformers", "peft")
WEB = ("fastapi", "uvicorn", "starlette")
COMMAND = ("openbook-cli",)
FORBIDDEN = {
    # FastAPI and uvicorn are its HTTP endpoint, OpenAI's /v1/embeddings.
    "embedder": (*COMMAND, "faiss-cpu", "peft", "openbook-database"),
    "retriever": (*HEAVY, *WEB, *COMMAND, "openbook-model"),
    "generator": (*COMMAND, "peft", "openbook-embedder", "openbook-trainer"),
    "trainer": (*WEB, *COMMAND, "openbook-embedder", "openbook-retriever"),
    "cli": (),
}


def forbidden(image: str, distributions: set[str]) -> list[str]:
    """Those of the distributions, spelt in any way, that the image must not hold."""
    held = {re.sub(r"[-_.]+", "-", each).lower() for each in distributions}
    return sorted(held.intersection(FORBIDDEN[image]))


@dataclass(frozen=True)
class Run:
    line: str


@dataclass(frozen=True)
class Copy:
    sources: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Env:
    values: dict[str, str]


@dataclass
class Image:
    """`steps` and `arguments` are the build stage's, everything else the last stage's."""

    steps: list[Run | Copy | Env] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def read_dockerfile(path: Path) -> Image:
    """Raises ValueError for what this reader does not know: another shape than two stages, another instruction."""
    image, stage, taken = Image(), 0, False
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.partition(" ")
        match word, stage:
            case "FROM", _:
                stage += 1
            case "WORKDIR", 1 if rest == SOURCE:
                pass
            case "RUN", 1:
                image.steps.append(Run(re.sub(r"--mount=type=cache,\S+\s+", "", rest).strip()))
            case "COPY", 1 if not rest.startswith("--"):
                *sources, target = shlex.split(rest)
                image.steps.append(Copy(tuple(sources), target))
            case "ENV", 1:
                image.steps.append(Env(_pairs(rest)))
            case "ARG", 1:
                image.arguments |= _pairs(rest)
            case "COPY", 2 if rest == f"--from=build {INSTALLED} {INSTALLED}":
                taken = True
            case "ENV", 2:
                image.environment |= _pairs(rest)
            case "USER", 2:
                image.user = rest
            case "ENTRYPOINT", 2:
                image.entrypoint = json.loads(rest)
            case "CMD", 2:
                image.command = json.loads(rest)
            case "HEALTHCHECK", 2:
                image.health = json.loads(rest.partition("CMD ")[2] or "[]")
            case ("", _) | ("WORKDIR" | "EXPOSE" | "VOLUME", 2):
                pass
            case _:
                raise ValueError(f"{path.name}: `{line}` in stage {stage} is not known here")
    if stage != 2 or not taken:
        raise ValueError(f"{path.name}: expected a build stage, and a last one that copies {INSTALLED} from it")
    return image


def _pairs(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in shlex.split(text))
