"""`openbook_embedder.memory`, in processes of their own, by what glibc says of its arenas."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_COUNT = """
import ctypes, sys, threading
from openbook_embedder.memory import share_arenas
print(share_arenas())
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
begun = threading.Barrier(12)
def allocate():
    begun.wait()
    libc.malloc(ctypes.c_size_t(1000))
    begun.wait()
threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def _run(**environment: str) -> tuple[str, int]:
    kept = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    out = subprocess.run(
        [sys.executable, "-c", _COUNT], env=kept | environment, capture_output=True, text=True, check=True
    )
    return out.stdout.split()[0], out.stdout.count("<heap nr=")


def test_threads_share_two_arenas() -> None:
    done, arenas = _run()
    assert done == "True"
    assert 1 <= arenas <= 2


def test_what_the_environment_says_holds() -> None:
    done, arenas = _run(MALLOC_ARENA_MAX="5")
    assert done == "False"
    assert 3 <= arenas <= 5
