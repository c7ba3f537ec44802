"""The outside checker: does each reply hold what the one snapshot that it names holds?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from openbook_cli.demo.load import Call


class Checker:
    """Opens the snapshots itself, independent of the services."""

    def __init__(self, folders: Sequence[Path]) -> None:
        from openbook_database.snapshot import Snapshot

        self._snapshots = {snapshot.id: snapshot for snapshot in (Snapshot.open(folder) for folder in folders)}

    def is_mixed(self, call: Call) -> bool:
        """Whether a passage, or what follows it, is not the text of that chunk in the snapshot that the reply names."""
        snapshot = self._snapshots.get(call.snapshot)
        if snapshot is None:
            return True
        for chunk_id, text, continuation in call.passages:
            if not 0 <= chunk_id < snapshot.manifest.chunks:
                return True
            shard, ids = snapshot.shard_of(chunk_id), np.array([chunk_id], dtype=np.int64)
            if shard.text(ids) != [text] or shard.continuation_text(ids) != [continuation]:
                return True
        return False
