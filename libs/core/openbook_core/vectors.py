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


VECTOR_TYPES: dict[str, common_pb2.ElementType] = {
    "float32": common_pb2.ELEMENT_TYPE_FLOAT32,
    "float16": common_pb2.ELEMENT_TYPE_FLOAT16,
    "bfloat16": common_pb2.ELEMENT_TYPE_BFLOAT16,
    "int8": common_pb2.ELEMENT_TYPE_INT8,
}
_WIDTHS = {
    common_pb2.ELEMENT_TYPE_FLOAT32: 4,
    common_pb2.ELEMENT_TYPE_FLOAT16: 2,
    common_pb2.ELEMENT_TYPE_BFLOAT16: 2,
    common_pb2.ELEMENT_TYPE_INT8: 1,
}


def encode_vectors(vectors_ND: NDArray[Any], element_type: int | None = None) -> common_pb2.Vectors:
    """A matrix [n, d] as a message: float32 or float16 as it is, float32 as any of VECTOR_TYPES.

    INT8 is symmetric with one scale for each row: a fixed one would leave the small elements of a vector of length one
    with a handful of levels.
    """
    element_type = element_type_of(vectors_ND.dtype) if element_type is None else element_type
    message = common_pb2.Vectors(type=element_type, rows=vectors_ND.shape[0], dimension=vectors_ND.shape[1])  # type: ignore[arg-type]
    if element_type == common_pb2.ELEMENT_TYPE_BFLOAT16:
        bits_ND = np.ascontiguousarray(vectors_ND, "<f4").view("<u4")
        message.data = ((bits_ND + 0x7FFF + (bits_ND >> 16 & 1)) >> 16).astype("<u2").tobytes()
    elif element_type == common_pb2.ELEMENT_TYPE_INT8:
        largest_N1 = np.abs(vectors_ND).max(axis=1, keepdims=True)
        scale_N1 = (np.where(largest_N1 > 0, largest_N1, 1) / 127).astype("<f4")
        message.data = np.rint(vectors_ND / scale_N1).astype("i1").tobytes()
        message.scales = scale_N1.tobytes()
    else:
        message.data = np.ascontiguousarray(vectors_ND, dtype_of(element_type)).tobytes()
    return message


def decode_vectors(message: common_pb2.Vectors, field: str, *, dimension: int | None = None) -> NDArray[np.float32]:
    """The float32 matrix [n, d] of a message; a view of its bytes where they are float32.

    Raises ArgumentError naming `field` for a wrong type, size or dimension and for values that are not finite.
    """
    check_vectors(message, field, dimension=dimension)
    vectors = _elements(message).reshape(message.rows, message.dimension).astype("f4", copy=False)
    if not np.isfinite(vectors).all():
        raise ArgumentError(f"{field}.data: holds values that are not finite", field=f"{field}.data")
    return vectors


def check_vectors(message: common_pb2.Vectors, field: str, *, dimension: int | None = None) -> None:
    """As `decode_vectors`, without a look at the values."""
    if message.type not in _WIDTHS:
        raise ArgumentError(
            f"{field}.type: vectors are FLOAT32, FLOAT16, BFLOAT16 or INT8, given element type {message.type}",
            field=f"{field}.type",
        )
    expected = message.rows * message.dimension * _WIDTHS[message.type]
    _require_bytes(message.data, expected, f"{message.rows} rows of {message.dimension} elements", f"{field}.data")
    if dimension is not None and message.rows and message.dimension != dimension:
        raise ArgumentError(
            f"{field}.dimension: the database holds vectors of {dimension} elements, given {message.dimension}",
            field=f"{field}.dimension",
        )
    if message.type == common_pb2.ELEMENT_TYPE_INT8:
        _require_bytes(message.scales, 4 * message.rows, f"scales of {message.rows} rows", f"{field}.scales")


def _elements(message: common_pb2.Vectors) -> NDArray[Any]:
    if message.type == common_pb2.ELEMENT_TYPE_BFLOAT16:
        halves = np.frombuffer(message.data, "<u2").astype("<u4")
        return np.asarray(np.left_shift(halves, np.uint32(16)).view("<f4"))
    if message.type == common_pb2.ELEMENT_TYPE_INT8:
        whole_ND = np.frombuffer(message.data, "i1").reshape(message.rows, message.dimension)
        return np.asarray(whole_ND.astype("f4") * np.frombuffer(message.scales, "<f4")[:, None])
    return np.frombuffer(message.data, dtype_of(message.type))


def _require_bytes(data: bytes, expected: int, what: str, field: str) -> None:
    if len(data) != expected:
        raise ArgumentError(f"{field}: {what} take {expected} bytes, given {len(data)}", field=field)
