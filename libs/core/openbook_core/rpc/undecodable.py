"""What is wrong with bytes that protobuf cannot read as a message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from openbook_core.errors import ArgumentError


def deserializer_of(from_string: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`from_string` of a message, but bytes that do not parse give the ArgumentError to raise.

    gRPC would answer them with INTERNAL and no field; its deserialisers have no other way to say more.
    """

    def parse(data: bytes) -> Any:
        try:
            return from_string(data)
        except DecodeError as error:
            descriptor: Descriptor = from_string.__self__.DESCRIPTOR  # type: ignore[attr-defined]
            return _explain(descriptor, data, error)

    return parse


def decoded(request: Any) -> Any:
    """What `deserializer_of` gave, or its error raised."""
    if isinstance(request, ArgumentError):
        raise request
    return request


def _explain(descriptor: Descriptor, data: bytes, error: DecodeError) -> ArgumentError:
    field = _bad_text(descriptor, data)
    if field:
        return ArgumentError(f"{field}: is not UTF-8; send text, not bytes of another encoding", field=field)
    return ArgumentError(f"the bytes are not a {descriptor.full_name}: {error}")


def _bad_text(descriptor: Descriptor, data: bytes) -> str:
    """Path of the first string that is not UTF-8, such as texts[1]; empty where that is not what is wrong."""
    seen: Counter[int] = Counter()
    try:
        fields = [(each.field_number, each.data) for each in UnknownFieldSet(Empty.FromString(data))]  # type: ignore[attr-defined]
    except DecodeError:
        return ""
    for number, value in fields:
        known = descriptor.fields_by_number.get(number)
        if known is None or not isinstance(value, bytes):
            continue
        path = f"{known.name}[{seen[number]}]" if known.is_repeated else str(known.name)
        seen[number] += 1
        if known.type == FieldDescriptor.TYPE_STRING:
            try:
                value.decode()
            except UnicodeDecodeError:
                return path
        elif known.message_type is not None and (inner := _bad_text(known.message_type, value)):
            return f"{path}.{inner}"
    return ""
