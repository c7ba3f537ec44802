"""Searches one snapshot with one GPU for a shard process, which starts it (`on_device`).

`python -m openbook_retriever.device_process FD`: FD is a socket. The first message says what to load, the others are
searches, one at a time. It ends with the socket, which means that the shard process is gone, and after an error that the
device does not recover from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from openbook_database.index.gpu import Gpu, device_memory
from openbook_database.snapshot import Snapshot
from openbook_retriever.on_device import Answer, Failure, Load, Loaded


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 when it is not needed any more, else 1."""
    with Connection(int(arguments[0])) as connection:
        try:
            return _serve(connection)
        except (EOFError, ConnectionError):
            return 0


def _serve(connection: Connection) -> int:
    passed: list[int] = []
    try:
        opened, memory = _load(connection.recv(), passed)
    except Exception as error:  # noqa: BLE001  whatever it is, the shard process reports it
        connection.send(Failure.of(error))
        return 1
    connection.send(memory)
    shards = {shard.number: shard for shard in opened.shards}
    while True:
        number, asked = connection.recv()
        passed.clear()
        try:
            answer: Any = Answer(shards[number].search_here(*asked), sum(passed))
        except Exception as error:  # noqa: BLE001  the caller's to raise
            answer = Failure.of(error)
        connection.send(answer)
        if isinstance(answer, Failure) and not _still_right(opened):
            return 1


def _load(asked: Load, passed: list[int]) -> tuple[Snapshot, Loaded]:
    opened = Snapshot.open(asked.folder, "sizes", shards=asked.shards, expected_id=asked.snapshot)
    gpu = Gpu(asked.device, temporary_bytes=asked.work_bytes, passed=passed.append)
    before, _ = device_memory(asked.device)
    opened.move_to(gpu)
    free, total = device_memory(asked.device)
    return opened, Loaded(max(0, before - free), free, total)


def _still_right(opened: Snapshot) -> bool:
    """Many errors of a device are those of all that follow."""
    try:
        opened.check_golden()
    except Exception:  # noqa: BLE001
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
