"""Exports: served like their originals by ONNX Runtime and OpenVINO, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoders import DIMENSION, EFFECT_TEXTS, TEXTS, edit_json, write_encoder, write_sentence_files

from openbook_core.errors import ArgumentError, ConfigError, CorruptError, InputError, OpenbookError
from openbook_core.probes import lowest_cosine
from openbook_core.weights import DEFAULT_EMBEDDER
from openbook_embedder.architecture import ARCHITECTURES
from openbook_embedder.config import EmbedderConfig, EncoderOptions
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.export import export_encoder
from openbook_embedder.exported import RECORD_NAME, Effect, ExportRecord
from openbook_embedder.recall import measure_effect, top_overlap

BACKENDS = ("onnx", "openvino")
EncoderOf, ExportOf = Callable[[str], Path], Callable[[str, str], Path]


def torch_engine(model: Path | str, **options: Any) -> EncoderEngine:
    return EncoderEngine.load(model, dtype="float32", options=EncoderOptions(**options))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [*sorted(ARCHITECTURES), DEFAULT_EMBEDDER])
def test_an_export_is_served_as_its_original(
    encoder_of: EncoderOf, export_of: ExportOf, kind: str, backend: str
) -> None:
    original, exported = torch_engine(encoder_of(kind)), EncoderEngine.load(export_of(kind, backend))
    assert exported.dtype == f"{backend}-float32"
    assert exported.fingerprint == original.fingerprint
    found_ND = exported.encode(TEXTS)
    assert found_ND.dtype == np.float32
    assert lowest_cosine(found_ND, original.encode(TEXTS)) >= 0.99999
    assert lowest_cosine(exported.encode_queries(TEXTS[:9]), original.encode_queries(TEXTS[:9])) >= 0.99999
    record = ExportRecord.read(export_of(kind, backend))
    assert record is not None and record.backend == backend and record.versions["torch"]
    assert record.effect.texts == len(EFFECT_TEXTS) and record.effect.overlap >= 0.99 and record.effect.attaches
    assert not list(export_of(kind, backend).glob("*.safetensors"))
    assert not list(export_of(kind, backend).parent.glob(".*"))


def test_openvino_reports_to_nobody(export_of: ExportOf) -> None:
    EncoderEngine.load(export_of("bert", "openvino"))
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_a_signal_after_two_openvino_networks_is_handled(export_of: ExportOf) -> None:
    """With a core for each, the second one left signals a stack that the first had unmapped."""
    code = """
import gc, signal, sys
from openbook_embedder.engine import EncoderEngine
engines = [EncoderEngine.load(sys.argv[1]) for _ in range(2)]
while engines:
    engines.pop(0)
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""
    command = [sys.executable, "-c", code, str(export_of("bert", "openvino"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_an_older_layout_and_a_plain_folder(tmp_path: Path) -> None:
    layered = tmp_path / "layered"
    write_encoder(layered / "0_Transformer", "bert", pooling=None)
    write_sentence_files(layered, pooling="cls", normalize=False, prompts=None)
    modules = (layered / "modules.json").read_text()
    (layered / "modules.json").write_text(modules.replace('"path": ""', '"path": "0_Transformer"'))
    export_encoder(layered, tmp_path / "a", backend="onnx", texts=EFFECT_TEXTS)
    assert (tmp_path / "a" / "0_Transformer" / RECORD_NAME).is_file()
    exported, original = EncoderEngine.load(tmp_path / "a"), torch_engine(layered)
    assert exported.fingerprint == original.fingerprint
    assert np.abs(exported.encode(TEXTS) - original.encode(TEXTS)).max() <= 1e-4

    plain = write_encoder(tmp_path / "plain", "mpnet", pooling=None)
    options = EncoderOptions(pooling="mean")
    export_encoder(plain, tmp_path / "b", backend="openvino", texts=EFFECT_TEXTS, options=options)
    for pooling in ("mean", "cls"):  # the network ends before the pooling, which stays free
        exported = EncoderEngine.load(tmp_path / "b", options=EncoderOptions(pooling=pooling))
        original = torch_engine(plain, pooling=pooling)
        assert exported.fingerprint == original.fingerprint
        assert lowest_cosine(exported.encode(TEXTS), original.encode(TEXTS)) >= 0.99999


def test_the_overlap_is_that_of_a_search_by_hand() -> None:
    random = np.random.default_rng(0)
    left_ND = random.normal(size=(60, 8)).astype(np.float32)
    right_ND = left_ND + random.normal(size=(60, 8)).astype(np.float32) * 0.3
    kept = []
    for row in range(60):
        near = []
        for vectors_ND in (left_ND, right_ND):
            scored = [(float(vectors_ND[row] @ vectors_ND[other]), other) for other in range(60) if other != row]
            near.append({other for _, other in sorted(scored, reverse=True)[:10]})
        kept.append(len(near[0] & near[1]) / 10)
    assert 0.3 < np.mean(kept) < 0.95
    assert top_overlap(left_ND, right_ND, 10) == pytest.approx(np.mean(kept))
    assert top_overlap(left_ND, left_ND, 10) == 1.0


def test_the_effect_of_bfloat16_is_measured_in_the_same_way(encoder_of: EncoderOf) -> None:
    exact = torch_engine(encoder_of("bert"))
    reduced = EncoderEngine.load(encoder_of("bert"), dtype="bfloat16")
    effect = measure_effect(exact, reduced, EFFECT_TEXTS)
    assert effect.texts == 100 and 0.5 < effect.overlap < 1 and 0.99 < effect.probe_cosine < 1


def test_int8_keeps_the_fingerprint_and_says_what_it_costs(encoder_of: EncoderOf, tmp_path: Path) -> None:
    record = export_encoder(encoder_of("bert"), tmp_path / "int8", backend="onnx", dtype="int8", texts=EFFECT_TEXTS)
    exact, exported = torch_engine(encoder_of("bert")), EncoderEngine.load(tmp_path / "int8", backend="onnx")
    assert exported.dtype == "onnx-int8" and exported.fingerprint == exact.fingerprint
    assert record.effect == measure_effect(exact, exported, EFFECT_TEXTS)
    assert 0.5 < record.effect.probe_cosine < 0.9999
    assert b"MatMulInteger" in (tmp_path / "int8" / "network.onnx").read_bytes()


@pytest.fixture
def folder(export_of: ExportOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export_of("bert", "onnx"), tmp_path / "model"))


def lose(folder: Path, overlap: float) -> None:
    record = json.loads((folder / RECORD_NAME).read_text())
    edit_json(folder / RECORD_NAME, effect={**record["effect"], "overlap": overlap})


def test_one_that_loses_too_much_is_served_where_it_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lose(folder, 0.99)
    EncoderEngine.load(folder)
    assert "10 nearest" not in caplog.text
    lose(folder, 0.9899)
    with pytest.raises(ConfigError, match=r"99\.0% of the 10 nearest .* --backend onnx") as refused:
        EncoderEngine.load(folder)
    assert refused.value.field == "backend"
    EncoderEngine.load(folder, backend="onnx")
    assert "because the backend onnx was named" in caplog.text


def test_a_build_goes_on_with_the_backend_that_began_it(folder: Path, encoder_of: EncoderOf) -> None:
    """A build hands the recorded type to the next run."""
    assert EncoderEngine.load(folder, dtype="onnx-float32").dtype == "onnx-float32"  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="'onnx-float32'; known: auto, float32"):
        EncoderEngine.load(encoder_of("bert"), dtype="onnx-float32")  # type: ignore[arg-type]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def drop(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        record = json.loads((folder / RECORD_NAME).read_text())
        (folder / RECORD_NAME).write_text(json.dumps({key: value for key, value in record.items() if key != name}))

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda folder: (folder / "network.onnx").unlink(), InputError, "holds no network.onnx, which its"),
        (lambda folder: flip(folder / "network.onnx"), CorruptError, "checksum differs"),
        (lambda folder: cut(folder / "network.onnx"), CorruptError, "checksum differs"),
        (
            lambda folder: edit_json(folder / RECORD_NAME, format_version=2),
            InputError,
            "format 2, this version reads 1",
        ),
        (lambda folder: (folder / RECORD_NAME).write_text("{"), InputError, "is not JSON"),
        (drop("effect"), InputError, "effect: Field required"),
        (lambda folder: edit_json(folder / RECORD_NAME, spare=1), InputError, "unknown key 'spare'"),
        (lambda folder: edit_json(folder / RECORD_NAME, fingerprint={}), InputError, "fingerprint lacks architecture"),
        (
            lambda folder: edit_json(folder / "config.json", layer_norm_eps=1e-5),
            InputError,
            "layer_norm_eps 1e-05, the",
        ),
        (lambda folder: (folder / RECORD_NAME).unlink(), InputError, "weights do not load"),
    ],
)
def test_a_folder_that_was_changed(
    folder: Path, change: Callable[[Path], None], error: type[OpenbookError], message: str
) -> None:
    change(folder)
    with pytest.raises(error, match=message) as refused:
        EncoderEngine.load(folder)
    assert refused.value.field == "model"


def test_bytes_that_the_runtime_does_not_read(folder: Path, export_of: ExportOf, tmp_path: Path) -> None:
    other = Path(shutil.copytree(export_of("bert", "openvino"), tmp_path / "other"))
    for place, name in ((folder, "network.onnx"), (other, "network.xml")):
        (place / name).write_bytes(b"no network")
        record = ExportRecord.read(place)
        assert record is not None
        files = {**record.files, name: type(record.files[name]).of(place / name)}
        record.model_copy(update={"files": files}).write(place)
        with pytest.raises(InputError, match=f"{name} is not a network that o.* reads; export the model again"):
            EncoderEngine.load(place)


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"backend": "openvino"}, "backend", "exported for onnx"),
        ({"backend": "torch"}, "backend", "folder of the original model"),
        ({"backend": "tensorrt"}, "backend", "given 'tensorrt'; known: auto, torch, onnx, openvino"),
        ({"device": "cuda"}, "device", "an exported network runs on the CPU"),
        ({"dtype": "bfloat16"}, "dtype", "was exported in float32"),
        ({"compile": True}, "compile", "only torch compiles"),
    ],
)
def test_settings_against_an_export(folder: Path, settings: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as refused:
        EncoderEngine.load(folder, **settings)
    assert refused.value.field == field


def test_settings_of_the_service(encoder_of: EncoderOf) -> None:
    with pytest.raises(ConfigError, match="backend: Input should be 'auto', 'torch', 'onnx' or 'openvino'") as refused:
        EmbedderConfig.parse({"backend": "tensorrt"})
    assert refused.value.field == "backend"
    with pytest.raises(ConfigError, match=r"holds no network for onnx; .*openbook embedder export") as refused:
        EncoderEngine.load(encoder_of("bert"), backend="onnx")
    assert refused.value.field == "backend"


@pytest.mark.parametrize(("backend", "module"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_extra_that_is_not_installed(
    export_of: ExportOf, backend: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = export_of("bert", backend)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'openbook-embedder\[{backend}\]'") as refused:
        EncoderEngine.load(exported)
    assert refused.value.field == "backend"
    with pytest.raises(ConfigError, match=rf"pip install 'openbook-embedder\[{backend}\]'") as refused:
        export_encoder(tmp_path, tmp_path / "out", backend=backend, texts=())  # type: ignore[arg-type]
    assert refused.value.field == "format"
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'openbook-embedder\[export\]'"):
        export_encoder(tmp_path, tmp_path / "out", backend=backend, texts=())  # type: ignore[arg-type]


def test_what_is_not_exported(
    encoder_of: EncoderOf, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = tmp_path / "out", encoder_of("bert")
    for settings, field in (
        ({"backend": "openvino", "dtype": "int8"}, "dtype"),
        ({"out": folder}, "out"),
        ({"texts": EFFECT_TEXTS[:99] * 2}, "texts"),
        ({"model": folder}, "model"),
    ):
        given = {"model": model, "out": out, "backend": "onnx", "texts": EFFECT_TEXTS, **settings}
        with pytest.raises(ArgumentError) as refused:
            export_encoder(**given)  # type: ignore[arg-type]
        assert refused.value.field == field
    low = Effect(texts=128, overlap=1.0, probe_cosine=0.9)
    monkeypatch.setattr("openbook_embedder.export.measure_effect", lambda *_: low)
    with pytest.raises(OpenbookError, match="computes something else"):
        export_encoder(model, out, backend="onnx", texts=EFFECT_TEXTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_the_dimension_is_the_folder_s(folder: Path) -> None:
    assert EncoderEngine.load(folder).encode([]).shape == (0, DIMENSION)
