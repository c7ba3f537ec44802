"""Writes Megatron indexed datasets, independently of what reads them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def write_megatron(prefix: Path, documents: list[list[list[int]]], code: int, *, modes: bool = False) -> Path:
    """NAME.bin and NAME.idx as megatron/core/datasets/indexed_dataset.py describes them: documents of sequences of ids."""
    sequences = [sequence for document in documents for sequence in document]
    width = np.dtype(CODES[code]).itemsize
    prefix.with_suffix(".bin").write_bytes(b"".join(np.asarray(s, CODES[code]).tobytes() for s in sequences))
    lengths = [len(sequence) for sequence in sequences]
    places = [width * sum(lengths[:number]) for number in range(len(lengths))]
    borders = [sum(len(document) for document in documents[:number]) for number in range(len(documents) + 1)]
    parts = [b"MMIDIDX\x00\x00", struct.pack("<Q", 1), struct.pack("<B", code)]
    parts += [struct.pack("<Q", len(lengths)), struct.pack("<Q", len(borders))]
    parts += [struct.pack("<i", n) for n in lengths] + [struct.pack("<q", n) for n in places + borders]
    prefix.with_suffix(".idx").write_bytes(b"".join(parts) + (b"\x00" * len(lengths) if modes else b""))
    return prefix
