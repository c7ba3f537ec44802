"""An encoder on a device that does not come back ends its process, so that another one is started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from openbook_core.clients.embedder import EmbedderClient
from openbook_core.errors import UnavailableError

sys.path.insert(0, str(Path(__file__).parent))
from embedder_support import write_modules, write_tiny_encoder

# The service as it is, with an engine that says it is on a GPU.
SCRIPT = """
import sys, threading
from openbook_embedder import app
from openbook_embedder.config import EmbedderConfig

class Lost(app.EncoderEngine):
    device = "cuda"

    def encode_batch(self, ids):
        if sys.argv[2] == "hangs":
            threading.Event().wait()
        raise RuntimeError("CUDA error: unspecified launch failure")

app.EncoderEngine = Lost
app.serve(EmbedderConfig(model=sys.argv[1], port=0, dtype="float32", encoder_timeout_s=1.0, restart_after_s=0.5))
"""


@pytest.mark.parametrize(
    ("how", "met", "logged"),
    [
        ("fails", "fails on every text", "the encoder has failed for"),
        ("hangs", "does not come back|Socket closed|reset|refused", "the encoder hangs"),
    ],
)
def test_the_process_ends(tmp_path: Path, how: str, met: str, logged: str) -> None:
    model = write_modules(write_tiny_encoder(tmp_path / "tiny"))
    log = tmp_path / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(model), how], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text()
            with EmbedderClient(json.loads(line)["address"]) as client, pytest.raises(UnavailableError, match=met):
                client.embed(["a text"], "query", timeout_s=60)
            assert process.wait(60) == 1
        finally:
            process.kill()
    assert f"{logged}" in log.read_text() and "this process ends" in log.read_text()
