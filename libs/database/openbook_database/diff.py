"""What one snapshot has that another has not: documents by their ids, and contracts field by field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openbook_core.fingerprint import differences
from openbook_database.documents import METADATA_PREFIX, DocumentTable
from openbook_database.manifest import Manifest

Kind = Literal["added", "changed", "removed"]


@dataclass(frozen=True)
class Change:
    """One document. `fields`: what of a changed one differs: "content" (text or title), "title", "uri", "licence", or
    "metadata.NAME"."""

    kind: Kind
    external_id: str
    fields: tuple[str, ...] = ()


class SnapshotDiff:
    """Two snapshots side by side, their tables mapped; raises NotFoundError or CorruptError naming the file."""

    def __init__(self, first: str | Path, second: str | Path) -> None:
        manifests = [Manifest.read(Path(path)) for path in (first, second)]
        self.snapshots = tuple(manifest.snapshot_id for manifest in manifests)
        self.databases = tuple(manifest.database for manifest in manifests)
        self.counts: Counter[str] = Counter(added=0, changed=0, removed=0, unchanged=0)
        """Of the documents that `changes` has come to."""
        ours, theirs = (
            {**each.contract.to_record(), "encoder_dtype": each.recipe["encoder"]["dtype"]} for each in manifests
        )
        self.contract: list[tuple[str, Any, Any]] = differences(ours, theirs)
        """(field, first, second) for each field that differs; the compute type is among them."""
        self._first, self._second = (
            DocumentTable(Path(path) / "documents.arrow", documents=manifest.documents)
            for path, manifest in zip((first, second), manifests, strict=True)
        )

    def changes(self) -> Iterator[Change]:
        """Every document that differs, in the order of the ids: one pass over both tables."""
        first, second = self._first, self._second
        left = right = 0
        while left < len(first) or right < len(second):
            ours = first.id_bytes(left) if left < len(first) else None
            theirs = second.id_bytes(right) if right < len(second) else None
            if theirs is None or (ours is not None and ours < theirs):
                assert ours is not None
                change = Change("removed", ours.decode())
                left += 1
            elif ours is None or theirs < ours:
                change = Change("added", theirs.decode())
                right += 1
            else:
                change = Change("changed", ours.decode(), self._fields(left, right))
                left, right = left + 1, right + 1
                if not change.fields:
                    self.counts["unchanged"] += 1
                    continue
            self.counts[change.kind] += 1
            yield change

    def _fields(self, left: int, right: int) -> tuple[str, ...]:
        ours, theirs = self._first.record(left), self._second.record(right)
        found = [name for name in ("title", "uri", "licence") if getattr(ours, name) != getattr(theirs, name)]
        found += [METADATA_PREFIX + name for name, _, _ in differences(ours.metadata, theirs.metadata)]
        same = (self._first.contents[left] == self._second.contents[right]).all()
        return tuple(found if same else ["content", *found])
