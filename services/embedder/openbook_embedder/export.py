"""A model folder whose network is exported for ONNX Runtime or OpenVINO, and that is checked before it appears."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from openbook_core.errors import ConfigError, InputError, OpenbookError
from openbook_core.files import sync
from openbook_core.fingerprint import require_equal
from openbook_core.weights import resolve_model
from openbook_embedder.backends import open_session
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.exported import (
    FORMAT_VERSION,
    NETWORK_NAMES,
    ExportedBackend,
    ExportedDtype,
    ExportedNetwork,
    ExportRecord,
    FileRecord,
)
from openbook_embedder.files import read_json
from openbook_embedder.folder import EncoderFolder
from openbook_embedder.network import Head, TorchNetwork
from openbook_embedder.pooling import pool
from openbook_embedder.recall import measure_effect
from openbook_embedder.runtimes import INPUTS, OUTPUT, import_extra
from openbook_embedder.tokens import EncoderTokenizer

# Fewer chunks say nothing about the 10 nearest.
MIN_TEXTS = 100
_OPSET = 18
_LIBRARIES = {
    "onnx": ("torch", "transformers", "onnx", "onnxruntime"),
    "openvino": ("torch", "transformers", "onnx", "openvino"),
}
# In float32 the two differ by rounding only: less is a fault of the export.
_MIN_FLOAT32_COSINE = 0.9999
# Of what a model folder holds beside its weights; licences have no suffix.
_COPIED_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".md", ""})


def export_encoder(
    model: str | Path,
    out: Path,
    *,
    backend: ExportedBackend,
    dtype: ExportedDtype = "float32",
    texts: Sequence[str],
    options: EncoderOptions | None = None,
) -> ExportRecord:
    """Write the folder `out`, which is served as `model` is, with the same fingerprint; it appears whole.

    `texts` are passages of the kind that will be searched, on which the effect on the 10 nearest is measured. "int8"
    quantises the weights of matrix products, and their inputs as they come; for ONNX Runtime only.
    Raises ConfigError for a missing extra, an `out` that is there, int8 for OpenVINO and fewer than 100 distinct texts, and
    what `EncoderEngine.load` raises for the model.
    """
    import_extra("onnx", "export", "format")
    import_extra(*(("openvino", "openvino") if backend == "openvino" else ("onnxruntime", "onnx")), "format")
    if backend == "openvino" and dtype == "int8":
        raise ConfigError("dtype: int8 is exported for onnx only; take float32 for openvino", field="dtype")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out: {out} is there already; remove it, or give another folder", field="out")
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < MIN_TEXTS:
        raise ConfigError(
            f"texts: {len(distinct)} distinct chunks, at least {MIN_TEXTS} are needed to measure the effect",
            field="texts",
        )
    source, options = resolve_model(str(model)).resolve(), options or EncoderOptions()
    original = EncoderFolder.read(source, options)
    if ExportRecord.read(original.path) is not None:
        raise InputError(f"{source} is an export itself; give the folder of the original model", field="model")
    network = TorchNetwork.load(original.path, _head(original))
    exact = EncoderEngine(original, EncoderTokenizer(original), network)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
        target = Path(work) / "export"
        _copy(source, target)
        place = target / original.path.relative_to(source)
        copied = set(place.iterdir())
        _write_network(network.module, place, backend, dtype)
        written = sorted(set(place.iterdir()) - copied)
        folder = EncoderFolder.read(target, options)
        name = f"{backend}-{dtype}"
        exported = ExportedNetwork(name, network.weights_digest(), _head(folder), open_session(folder.path, backend))
        engine = EncoderEngine(folder, EncoderTokenizer(folder), exported)
        require_equal("the embedder", engine.fingerprint, exact.fingerprint, "the export", str(model))
        record = ExportRecord(
            format_version=FORMAT_VERSION,
            backend=backend,
            dtype=dtype,
            fingerprint=exact.fingerprint.record,
            files={path.name: FileRecord.of(path) for path in written},
            versions={library: version(library) for library in _LIBRARIES[backend]},
            effect=measure_effect(exact, engine, distinct),
        )
        if dtype == "float32" and not record.effect.probe_cosine >= _MIN_FLOAT32_COSINE:
            raise OpenbookError(
                f"the exported network computes something else: lowest cosine on the probe texts "
                f"{record.effect.probe_cosine:.5f}; nothing was written"
            )
        record.write(place)
        _publish(target, out)
    return record


def _head(folder: EncoderFolder) -> Head:
    return partial(pool, pooling=folder.pooling, normalize=folder.normalize)


def _copy(source: Path, target: Path) -> None:
    """The files of `source` and of the modules that its modules.json names, but for weights and their index."""
    places = {"", *(module["path"] for module in read_json(source / "modules.json") or [])}
    for place in sorted(places):
        (target / place).mkdir(parents=True, exist_ok=True)
        if not (source / place).is_dir():
            continue
        for path in (source / place).iterdir():
            kept = path.suffix in _COPIED_SUFFIXES and not path.name.startswith(".")
            if path.is_file() and kept and not path.name.endswith(".index.json"):
                shutil.copyfile(path, target / place / path.name)


def _write_network(module: torch.nn.Module, place: Path, backend: ExportedBackend, dtype: ExportedDtype) -> None:
    if backend == "onnx" and dtype == "float32":
        _write_onnx(module, place / NETWORK_NAMES["onnx"])
        return
    with tempfile.TemporaryDirectory(prefix="onnx.", dir=place.parent) as work:
        plain = Path(work) / "plain.onnx"
        _write_onnx(module, plain)
        if backend == "openvino":
            openvino = import_extra("openvino", "openvino", "format")
            # By itself it would round the weights to float16.
            openvino.save_model(
                openvino.Core().read_model(str(plain)), place / NETWORK_NAMES[backend], compress_to_fp16=False
            )
        else:
            _quantise(plain, place / NETWORK_NAMES[backend])


class _Traced(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        return self.module(input_ids=ids_NT, attention_mask=mask_NT).last_hidden_state  # type: ignore[no-any-return]


def _write_onnx(module: torch.nn.Module, path: Path) -> None:
    """By tracing: torch's newer exporter takes ten times as long, and two more packages."""
    ids_NT, mask_NT = torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)
    mask_NT[1, 5:] = 0
    axes = {0: "texts", 1: "tokens"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of constants in the trace, which the check of the export would show
        torch.onnx.export(
            _Traced(module).eval(),
            (ids_NT, mask_NT),
            path,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes=dict.fromkeys((*INPUTS, OUTPUT), axes),
            opset_version=_OPSET,
            dynamo=False,
        )


def _quantise(plain: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Unsigned weights: without VNNI the products of signed ones overflow.
    kind = QuantType.QUInt8
    logging.disable(logging.WARNING)  # it says on the root logger what preparation might gain
    try:
        quantize_dynamic(plain, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=kind)
    finally:
        logging.disable(logging.NOTSET)


def _publish(target: Path, out: Path) -> None:
    for path in (*target.rglob("*"), target):
        sync(path)
    target.rename(out)
    sync(out.parent)
