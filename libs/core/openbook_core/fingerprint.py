"""Fingerprints: what must agree between parts, as a record compared field by field, and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from openbook_core.errors import MismatchError


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Fingerprint:
    """An immutable record of JSON values with its SHA-256 digest (64 hexadecimal digits)."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._json = canonical_json(dict(record))
        self.digest = hashlib.sha256(self._json.encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        return cls(json.loads(text))

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self._json)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        return self._json

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Fingerprint({self.digest[:12]})"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted field, our value, their value) for each field that differs; None stands for a missing one."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted(ours.keys() | theirs.keys()):
        left, right = ours.get(key), theirs.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append((f"{prefix}{key}", left, right))
    return found


def require_equal(what: str, ours: Fingerprint, theirs: Fingerprint, ours_name: str, theirs_name: str) -> None:
    """Raise MismatchError that names each differing field with both sides, unless the two are equal."""
    if ours == theirs:
        return
    found = differences(ours.record, theirs.record)
    listing = "; ".join(
        f"{field}: {ours_name} has {shortened(left)}, {theirs_name} has {shortened(right)}"
        for field, left, right in found
    )
    raise MismatchError(
        f"{what} differs between {ours_name} and {theirs_name}: {listing}",
        field=found[0][0],
        fields=",".join(field for field, _, _ in found),
    )


def shortened(value: Any) -> str:
    """`value` as JSON of at most 80 characters, for messages."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
