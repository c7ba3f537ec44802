"""The recipe: all that a build's result follows from, compared before work is resumed or a snapshot reused."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import faiss

from openbook_core.fingerprint import Fingerprint
from openbook_database.build.settings import BuildSettings
from openbook_database.cleaning.near import near_versions
from openbook_database.encoder import Encoder
from openbook_database.manifest import FORMAT_VERSION

# Grows when a stage's output changes for the same input.
STAGES = {"chunk": 3, "embed": 3, "train-index": 1, "add": 2, "finish": 4}
_LIBRARIES = ("numpy", "pyarrow", "tokenizers", "torch", "transformers")


def make_recipe(
    database: str,
    sources: Sequence[dict[str, Any]],
    tokenizer: Fingerprint,
    encoder: Encoder,
    settings: BuildSettings,
    evaluation: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The recipe as JSON values. It names no path, host or clock."""
    return {
        "database": database,
        "format_version": FORMAT_VERSION,
        "stages": STAGES,
        "libraries": _versions() | (near_versions() if settings.cleaning.dedup == "near" else {}),
        "settings": settings.model_dump(mode="json", exclude={"cleaning": {"evaluation"}}),
        "evaluation": {str(place): record for place, record in enumerate(evaluation)},
        "sources": {str(place): record for place, record in enumerate(sources)},
        "tokenizer": tokenizer.record,
        "encoder": {
            "fingerprint": encoder.fingerprint.record,
            "dimension": encoder.dimension,
            "max_tokens": encoder.max_tokens,
            "dtype": encoder.dtype,
        },
    }


def _versions() -> dict[str, str]:
    versions = {"faiss": str(faiss.__version__)}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
