"""The Dockerfiles as `make image-smoke` reads them, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy" / "docker"))
from dockerfile import FORBIDDEN, Copy, Env, Run, forbidden, read_dockerfile

DOCKER = Path(__file__).parents[2] / "deploy" / "docker"

FIRST = (
    "FROM python:3 AS build\nWORKDIR /src\nRUN --mount=type=cache,target=/root/.cache/pip \\\n    pip install ./proto\n"
)
LAST = "FROM python:3\nCOPY --from=build /opt/openbook /opt/openbook\n"


def read(folder: Path, text: str):
    (folder / "x.Dockerfile").write_text(text, encoding="utf-8")
    return read_dockerfile(folder / "x.Dockerfile")


def test_both_stages_are_read_in_order(tmp_path: Path) -> None:
    first = FIRST.replace("RUN", "ARG INDEX=https://x/y=z\nENV PATH=/opt/openbook/bin:$PATH\nCOPY a b ./c\nRUN")
    image = read(
        tmp_path, f'# a comment\n{first}\n{LAST}ENV A=1 \\\n    B=2\nUSER 7:7\nHEALTHCHECK --retries=3 CMD ["y"]\n'
    )
    assert image.steps == [
        Env({"PATH": "/opt/openbook/bin:$PATH"}),
        Copy(("a", "b"), "./c"),
        Run("pip install ./proto"),
    ]
    assert image.arguments == {"INDEX": "https://x/y=z"}
    assert (image.environment, image.user, image.health) == ({"A": "1", "B": "2"}, "7:7", ["y"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (FIRST + LAST + "RUN pip install torch\n", "RUN pip install torch"),
        (FIRST.replace("RUN", "ADD x y\nRUN") + LAST, "ADD x y"),
        (FIRST.replace("/src", "/elsewhere") + LAST, "WORKDIR /elsewhere"),
        (FIRST + LAST.replace("/opt/openbook /opt", "/src /opt"), "COPY --from=build /src"),
        (FIRST + "COPY --from=other /usr /usr\n" + LAST, "COPY --from=other"),
        (FIRST, "expected a build stage"),
        (FIRST + LAST.splitlines()[0], "expected a build stage"),
        (FIRST + LAST + LAST, "stage 3"),
    ],
)
def test_what_the_smoke_run_would_not_do_is_refused(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ValueError, match=r"x\.Dockerfile") as refusal:
        read(tmp_path, text)
    assert named in str(refusal.value)


def test_forbidden_names_are_found_in_any_spelling() -> None:
    assert forbidden("retriever", {"Torch", "openbook_model", "numpy"}) == ["openbook-model", "torch"]
    assert forbidden("embedder", {"faiss.cpu", "torch"}) == ["faiss-cpu"]
    assert forbidden("trainer", {"FastAPI", "torch"}) == ["fastapi"]
    assert forbidden("cli", {"torch", "fastapi"}) == []


def test_the_issue_is_held() -> None:
    assert "torch" in FORBIDDEN["retriever"] and "fastapi" in FORBIDDEN["trainer"]


def test_each_dockerfile_is_read_and_finds_its_sources() -> None:
    assert {path.name.partition(".")[0] for path in DOCKER.glob("*.Dockerfile")} == set(FORBIDDEN)
    lines = (DOCKER.parents[1] / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    for name in FORBIDDEN:
        path = DOCKER / f"{name}.Dockerfile"
        assert f"# docker build -f deploy/docker/{name}.Dockerfile -t openbook/{name} ." in path.read_text()
        image = read_dockerfile(path)
        assert image.entrypoint and image.user == "10001:10001"
        sources = [source for step in image.steps if isinstance(step, Copy) for source in step.sources]
        assert {source.partition("/")[0] for source in sources} <= allowed
        assert all((DOCKER.parents[1] / source).exists() for source in sources)
