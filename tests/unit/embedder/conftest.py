"""Makes the helpers beside these tests importable, and exports models once for all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_encoders import EFFECT_TEXTS, write_encoder

from openbook_embedder.architecture import ARCHITECTURES
from openbook_embedder.export import export_encoder
from openbook_embedder.exported import ExportedBackend

POOLING_OF = {"roberta": "cls", "distilbert": "lasttoken", "modernbert": "lasttoken"}


@pytest.fixture(scope="session")
def encoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path | str]:
    """A tiny encoder of a served type, with prompts; another name stands for itself."""

    @cache
    def encoder(kind: str) -> Path | str:
        if kind not in ARCHITECTURES:
            return kind
        folder = tmp_path_factory.mktemp("encoders") / kind
        return write_encoder(folder, kind, pooling=POOLING_OF.get(kind, "mean"), prompts={"query": "query: "})

    return encoder


@pytest.fixture(scope="session")
def export_of(
    tmp_path_factory: pytest.TempPathFactory, encoder_of: Callable[[str], Path | str]
) -> Callable[[str, ExportedBackend], Path]:
    """The export of what `encoder_of` gives, in float32; not to be changed."""

    @cache
    def export(kind: str, backend: ExportedBackend) -> Path:
        out = tmp_path_factory.mktemp("exports") / "model"
        export_encoder(encoder_of(kind), out, backend=backend, texts=EFFECT_TEXTS)
        return out

    return export
