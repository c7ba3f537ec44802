"""The addresses that services, the shipped training configuration and the README take without being told agree."""

from __future__ import annotations

from pathlib import Path

from openbook_core.config import read_yaml
from openbook_embedder.config import EmbedderConfig
from openbook_generator.config import GeneratorConfig

ROOT = Path(__file__).parents[2]


def test_default_addresses_agree() -> None:
    router = GeneratorConfig().retriever
    training = read_yaml(ROOT / "examples" / "train" / "tiny.yaml")
    assert training["retrieval"]["address"] == router
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in (
        f"--port {router.rpartition(':')[2]}",
        f"--retriever {router}",
        f"openbook serve embedder --port {EmbedderConfig().port}",
        f"--port {GeneratorConfig().port}",
    ):
        assert command in readme
