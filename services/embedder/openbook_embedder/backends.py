"""Which backend computes: the one that is named, or what a model folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from openbook_core.errors import ArgumentError, ConfigError
from openbook_core.telemetry import get_logger
from openbook_embedder.config import Backend, Device, Dtype
from openbook_embedder.exported import MIN_OVERLAP, NETWORK_NAMES, ExportedBackend, ExportedNetwork, ExportRecord
from openbook_embedder.folder import EncoderFolder
from openbook_embedder.network import Head, Network, TorchNetwork, resolve_device
from openbook_embedder.runtimes import Run, onnx_session, openvino_session

_log = get_logger(__name__)


def open_network(folder: EncoderFolder, head: Head, *, backend: Backend, device: Device, dtype: str) -> Network:
    """In float32, or as it was exported.

    "auto" takes the exported network where the folder holds one, unless it loses too much. Raises ArgumentError for an
    unknown backend, device or dtype, ConfigError for settings that the folder or this installation does not allow, InputError
    or CorruptError for files that cannot be used.
    """
    for name, given, kind in (("backend", backend, Backend), ("device", device, Device)):
        if given not in get_args(kind):
            raise ArgumentError(f"{name}: given {given!r}; known: {', '.join(get_args(kind))}", field=name)
    record = ExportRecord.read(folder.path)
    if record is None:
        if dtype not in get_args(Dtype):
            raise ArgumentError(f"dtype: given {dtype!r}; known: {', '.join(get_args(Dtype))}", field="dtype")
        if backend not in ("auto", "torch"):
            raise ConfigError(
                f"backend: {folder.path} holds no network for {backend}; write one: openbook embedder export MODEL "
                f"--format {backend} --out DIR",
                field="backend",
            )
        return TorchNetwork.load(folder.path, head, resolve_device(device))
    _check_settings(folder, record, backend=backend, device=device, dtype=dtype)
    record.check(folder)
    run = open_session(folder.path, record.backend)
    return ExportedNetwork(record.full_dtype, record.fingerprint["weights"], head, run)


def open_session(folder: Path, backend: ExportedBackend) -> Run:
    """The exported network in `folder`, with as many threads as torch has. Errors as of `runtimes`."""
    session = {"onnx": onnx_session, "openvino": openvino_session}[backend]
    return session(folder / NETWORK_NAMES[backend], torch.get_num_threads())


def _check_settings(
    folder: EncoderFolder, record: ExportRecord, *, backend: Backend, device: Device, dtype: str
) -> None:
    if backend not in ("auto", record.backend):
        raise ConfigError(
            f"backend: given {backend!r}, and {folder.path} holds a network that was exported for {record.backend}; "
            "give that, or the folder of the original model",
            field="backend",
        )
    if device == "cuda":
        raise ConfigError(
            f"device: given 'cuda', and an exported network runs on the CPU; give the folder of the original model "
            f"instead of {folder.path}",
            field="device",
        )
    if dtype not in ("auto", record.dtype, record.full_dtype):
        raise ConfigError(
            f"dtype: given {dtype!r}, and the network in {folder.path} was exported in {record.dtype}", field="dtype"
        )
    if not record.effect.loses:
        return
    loss = f"{folder.path} keeps {record.effect.overlap:.1%} of the 10 nearest of float32, less than {MIN_OVERLAP:.0%}"
    if backend == "auto":
        raise ConfigError(
            f"backend: {loss}, so it is never taken by default; name it if that is wanted: --backend {record.backend}",
            field="backend",
        )
    _log.warning(f"{loss}; it is served because the backend {record.backend} was named")
