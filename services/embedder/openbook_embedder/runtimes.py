"""Sessions of ONNX Runtime and OpenVINO over an exported network, both extras. Axes: N texts, T tokens, D elements."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ConfigError, InputError

# Token ids and mask [N, T] to last hidden states [N, T, D] in float32.
Run = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "last_hidden_state"


def import_extra(module: str, extra: str, field: str) -> Any:
    """The module of an extra; ConfigError with the command that installs it where it is missing."""
    if module == "openvino":
        # It reports each import to Google Analytics, unless its telemetry package cannot be imported.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ConfigError(
            f"{field}: this needs the extra {extra}: pip install 'openbook-embedder[{extra}]'", field=field
        ) from None


def onnx_session(path: Path, threads: int) -> Run:
    """On the CPU. ConfigError where ONNX Runtime is not installed, InputError for a file that it does not read."""
    runtime = import_extra("onnxruntime", "onnx", "backend")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Its threads must not spin between batches: the machine is shared.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _unread(path, runtime, error) from error
    return lambda ids_NT, mask_NT: session.run([OUTPUT], dict(zip(INPUTS, (ids_NT, mask_NT), strict=True)))[0]


def openvino_session(path: Path, threads: int) -> Run:
    """On the CPU, in the network's own type. Errors as of `onnx_session`."""
    runtime = import_extra("openvino", "openvino", "backend")
    # By itself it computes in bfloat16 where the processor has it.
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        compiled = _openvino_core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        raise _unread(path, runtime, error) from error
    request, lock = compiled.create_infer_request(), threading.Lock()

    def run(ids_NT: NDArray[np.int64], mask_NT: NDArray[np.int64]) -> NDArray[np.float32]:
        with lock:
            return np.array(request.infer(dict(zip(INPUTS, (ids_NT, mask_NT), strict=True)))[OUTPUT])

    return run


@cache
def _openvino_core() -> Any:
    """One for the process: each core's CPU plugin sets the stack that signals are handled on and, when it goes, puts back
    the one before, which is unmapped where that core went first. The next signal would end the process."""
    return import_extra("openvino", "openvino", "backend").Core()


def _unread(path: Path, runtime: Any, error: Exception) -> InputError:
    return InputError(
        f"{path} is not a network that {runtime.__name__} {runtime.__version__} reads; export the model again: {error}",
        field="model",
    )
