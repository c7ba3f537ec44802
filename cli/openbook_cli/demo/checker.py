"""The outside checkers: does each reply hold what the one snapshot that it names holds?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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


class ExactChecker:
    """Knows what every snapshot answers to every query: `answers` holds ids [Q, K] and scores [Q, K] by snapshot."""

    def __init__(self, answers: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float32]]]) -> None:
        self._answers = answers

    def differs(self, snapshot: str, query: int, ids: NDArray[np.int64], scores: NDArray[np.float32]) -> bool:
        """Whether a reply to query number `query` is not, in ids, order and scores, that of the snapshot it names."""
        expected = self._answers.get(snapshot)
        if expected is None:
            return True
        ids_QK, scores_QK = expected
        return not (np.array_equal(ids, ids_QK[query]) and np.array_equal(scores, scores_QK[query]))
