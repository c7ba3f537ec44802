"""Arrays on the wire: one bytes field, little-endian, type and shape declared."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError
from openbook_proto.v1 import common_pb2

_DTYPES: dict[int, np.dtype[Any]] = {
    common_pb2.ELEMENT_TYPE_FLOAT32: np.dtype("<f4"),
    common_pb2.ELEMENT_TYPE_FLOAT16: np.dtype("<f2"),
    common_pb2.ELEMENT_TYPE_UINT16: np.dtype("<u2"),
    common_pb2.ELEMENT_TYPE_UINT32: np.dtype("<u4"),
}


def dtype_of(element_type: int, field: str = "type") -> np.dtype[Any]:
    """The numpy dtype of an ElementType; raises ArgumentError for an unknown one."""
    if element_type not in _DTYPES:
        raise ArgumentError(f"{field}: unknown element type {element_type}", field=field)
    return _DTYPES[element_type]


def element_type_of(dtype: np.dtype[Any]) -> common_pb2.ElementType:
    """The ElementType of a numpy dtype."""
    for value, known in _DTYPES.items():
        if known == dtype.newbyteorder("<"):
            return cast(common_pb2.ElementType, value)
    raise TypeError(f"no element type for {dtype}")


def encode_vectors(vectors_ND: NDArray[Any]) -> common_pb2.Vectors:
    """A float32 or float16 matrix [n, d] as a message."""
    rows, dimension = vectors_ND.shape
    little = np.ascontiguousarray(vectors_ND, dtype=vectors_ND.dtype.newbyteorder("<"))
    return common_pb2.Vectors(
        data=little.tobytes(), type=element_type_of(vectors_ND.dtype), rows=rows, dimension=dimension
    )


def decode_vectors(message: common_pb2.Vectors, field: str, *, dimension: int | None = None) -> NDArray[np.float32]:
    """The float32 matrix [n, d] of a message; a view of its bytes where they are float32.

    Raises ArgumentError naming `field` for a wrong type, size or dimension and for values that are not finite.
    """
    dtype = dtype_of(message.type, f"{field}.type")
    if dtype.kind != "f":
        raise ArgumentError(f"{field}.type: vectors are FLOAT32 or FLOAT16", field=f"{field}.type")
    expected = message.rows * message.dimension * dtype.itemsize
    if len(message.data) != expected:
        raise ArgumentError(
            f"{field}.data: {message.rows} rows of {message.dimension} elements take {expected} bytes, "
            f"given {len(message.data)}",
            field=f"{field}.data",
        )
    if dimension is not None and message.rows and message.dimension != dimension:
        raise ArgumentError(
            f"{field}.dimension: the database holds vectors of {dimension} elements, given {message.dimension}",
            field=f"{field}.dimension",
        )
    vectors = np.frombuffer(message.data, dtype=dtype).reshape(message.rows, message.dimension).astype("f4", copy=False)
    if not np.isfinite(vectors).all():
        raise ArgumentError(f"{field}.data: holds values that are not finite", field=f"{field}.data")
    return vectors
