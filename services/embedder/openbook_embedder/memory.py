"""What the C library keeps of the memory that was freed."""

from __future__ import annotations

import ctypes
import os

_M_ARENA_MAX = -8  # of <malloc.h>
_ARENAS = 2


def share_arenas() -> bool:
    """Let all threads that begin from now on allocate from two arenas; whether the C library did.

    glibc gives nearly every thread an arena of its own, up to eight a core, and each keeps what the largest texts once took:
    under mixed load that is hundreds of MB, taken and given back at random. MALLOC_ARENA_MAX, where it is set, holds
    instead. Other C libraries have no such arenas.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_ARENA_MAX, _ARENAS))
