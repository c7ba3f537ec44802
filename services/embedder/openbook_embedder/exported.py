"""An exported network: the record that lies beside it, and what is checked before it is served.

The weights stay behind, so their digest, which belongs to the fingerprint, comes from the record; everything else of the
fingerprint is read from the folder's own files as for any model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from openbook_core.config import FrozenConfig
from openbook_core.errors import ConfigError, CorruptError, InputError
from openbook_core.fingerprint import differences, shortened
from openbook_embedder.files import read_object
from openbook_embedder.folder import EncoderFolder
from openbook_embedder.network import Head
from openbook_embedder.runtimes import Run

RECORD_NAME = "openbook_export.json"
FORMAT_VERSION: Literal[1] = 1
# Name of the network in a folder, by backend; OpenVINO keeps the weights in a second file.
NETWORK_NAMES = {"onnx": "network.onnx", "openvino": "network.xml"}
# Less of the top 10 in common with float32, and a network is only served where it is named.
MIN_OVERLAP = 0.99
# Below, two ways of computing are not one embedder (design, section 2).
MIN_PROBE_COSINE = 0.999

ExportedBackend = Literal["onnx", "openvino"]
ExportedDtype = Literal["float32", "int8"]


class FileRecord(FrozenConfig):
    """Bytes and SHA-256 of a file."""

    size: int = Field(ge=0)
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        with path.open("rb") as stream:
            return cls(size=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


class Effect(FrozenConfig):
    """What another way of computing changes, against float32 in torch (see `recall`)."""

    texts: int = Field(ge=1, description="chunks that were compared")
    overlap: float = Field(
        ge=0, le=1, description="share of each chunk's 10 nearest that stay so, mean over the chunks"
    )
    probe_cosine: float = Field(description="lowest cosine over the probe texts")

    @property
    def loses(self) -> bool:
        """Too much to be chosen by default."""
        return self.overlap < MIN_OVERLAP

    @property
    def attaches(self) -> bool:
        """To databases that were embedded in float32."""
        return self.probe_cosine >= MIN_PROBE_COSINE


class ExportRecord(FrozenConfig):
    """`openbook_export.json`. `fingerprint` is the original's record; `files` are the network's, by name."""

    format_version: Literal[1]
    backend: ExportedBackend
    dtype: ExportedDtype
    fingerprint: dict[str, Any]
    files: dict[str, FileRecord]
    versions: dict[str, str]
    effect: Effect

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The record in `folder`, None where there is none; InputError for one that this version does not read."""
        path = folder / RECORD_NAME
        data = read_object(path)
        if not data:
            return None
        if data.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{path} has format {data.get('format_version')!r}, this version reads {FORMAT_VERSION}; export the "
                "model again",
                field="model",
            )
        try:
            record = cls.parse(data, source=str(path))
        except ConfigError as error:
            raise InputError(error.message, field="model") from None
        for name in ("architecture", "weights"):
            if name not in record.fingerprint:
                raise InputError(f"{path}: the fingerprint lacks {name}; export the model again", field="model")
        return record

    @property
    def full_dtype(self) -> str:
        """As `Network.dtype`."""
        return f"{self.backend}-{self.dtype}"

    def write(self, folder: Path) -> None:
        """Into `folder`, under its name."""
        (folder / RECORD_NAME).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def check(self, folder: EncoderFolder) -> None:
        """Raise InputError where the folder lacks a file or its config.json is not the exported network's, CorruptError
        for a file that was changed."""
        changed = differences(self.fingerprint["architecture"], folder.architecture.record)
        if changed:
            name, recorded, found = changed[0]
            raise InputError(
                f"{folder.path}: config.json says {name} {shortened(found)}, the network was exported with "
                f"{shortened(recorded)}; export the model again",
                field="model",
            )
        for name, recorded_file in self.files.items():
            path = folder.path / name
            if not path.is_file():
                raise InputError(
                    f"{folder.path} holds no {name}, which its {RECORD_NAME} names; copy the whole folder, or export "
                    "the model again",
                    field="model",
                )
            if FileRecord.of(path) != recorded_file:
                raise CorruptError(
                    f"{path} is not the file that was exported: its checksum differs; copy it again, or export the "
                    "model again",
                    field="model",
                )


class ExportedNetwork:
    """A `network.Network` whose hidden states come from another runtime; pooling stays with torch."""

    def __init__(self, dtype: str, weights_digest: str, head: Head, run: Run) -> None:
        self.dtype = dtype
        self._weights_digest = weights_digest
        self._head = head
        self._run = run

    def vectors(self, ids_NT: NDArray[np.int64], mask_NT: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `Network.vectors`."""
        hidden_NTD = self._run(ids_NT, mask_NT)
        with torch.inference_mode():
            return self._head(torch.from_numpy(hidden_NTD), torch.from_numpy(mask_NT)).numpy()

    def weights_digest(self) -> str:
        """As `Network.weights_digest`, of the original."""
        return self._weights_digest
