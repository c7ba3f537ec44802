"""gRPC without its own event engine, unless a user wants it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_PROGRAM = "import openbook_core, os, grpc; grpc.insecure_channel('127.0.0.1:1'); print(os.environ['GRPC_EXPERIMENTS'])"


@pytest.mark.parametrize("given", [None, "event_engine_client"])
def test_the_event_engine_is_off_and_may_be_on(given: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    environment |= {} if given is None else {"GRPC_EXPERIMENTS": given}
    ran = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == (given or "-event_engine_client,-event_engine_listener")
    assert "nknown experiment" not in ran.stderr, "this gRPC has no such switch any more"
