"""Steps of one model in a process of its own, so that its memory is its own.

    python training_child.py '{"model": {...}, "twin": false, "dtype": "float32", "device": "cpu", "work": FILE.npz}'

Writes one line of JSON when the model is there. Then for each line {"steps": N} one with the seconds of each of N steps,
their processor time and the peak of memory; and for {"varied": N}, with `compile` in the first line, one with the graphs
that torch.compile made for the first batch of each kind and then for N more.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from training_steps import Steps, Work, as_trained, load_work, twin_of

from openbook_model import RetroConfig


def main() -> None:
    """Until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    spec = json.loads(sys.argv[1])
    config = RetroConfig.parse(spec["model"])
    work = load_work(Path(spec["work"]))
    with as_trained(spec["device"]) as world:
        before_mb = _status_mb("VmRSS")
        side = Steps(
            twin_of(config) if spec["twin"] else config,
            world,
            dtype=spec["dtype"],
            compiled=spec.get("compile", False),
        )
        about = {"parameters": side.parameters, "flops": side.flops(work), "threads": torch.get_num_threads()}
        answer({**about, "versions": {"torch": torch.__version__}})
        for line in sys.stdin:
            request = json.loads(line)
            if "varied" in request:
                answer(_varied(side, work, request["varied"]))
                continue
            begun = time.process_time()
            seconds = [side.step(work) for _ in range(request["steps"])]
            cpu_s = time.process_time() - begun
            peak_mb = _status_mb("VmHWM") - before_mb
            if world.device.type == "cuda":
                peak_mb = torch.cuda.max_memory_allocated(world.device) / 2**20
            answer({"seconds": seconds, "cpu_s": cpu_s, "peak_mb": peak_mb})


def _varied(side: Steps, work: Work, count: int) -> dict[str, Any]:
    """Graphs for batches of 4 kinds (one document or several, neighbours whole or not), then for `count` of other phases
    and lengths."""
    from itertools import product

    import numpy as np
    from torch._dynamo.utils import counters

    from openbook_trainer.data import Batch
    from openbook_trainer.neighbours import Neighbors

    random, m = np.random.default_rng(1), side.config.chunk_length
    batch, found = work
    sequences, tokens = batch.input_ids_BT.shape

    def varied(packed: bool, whole: bool) -> Work:
        phases = tuple(random.integers(1, m + 1, sequences).tolist())
        documents_BT = np.zeros((sequences, tokens), np.int64)
        for row, phase in enumerate(phases):
            documents_BT[row, phase + m * int(random.integers(0, tokens // m - 1)) :] = 1
        lengths_BLK = random.integers(0, side.config.neighbor_length, found.lengths_BLK.shape)
        if whole:
            lengths_BLK[:] = side.config.neighbor_length
        documents = documents_BT if packed else None
        return Batch(batch.input_ids_BT, batch.labels_BT, documents, phases, ()), Neighbors(found.ids_BLKR, lengths_BLK)

    kinds = list(product((False, True), (False, True)))
    graphs = []
    for each in (kinds, [kinds[int(random.integers(len(kinds)))] for _ in range(count)]):
        seconds = [side.step(varied(*kind)) for kind in each]
        graphs.append(int(counters["stats"]["unique_graphs"]))
    return {"batches": count, "graphs": graphs[0], "graphs_more": graphs[1] - graphs[0], "seconds": seconds}


def _status_mb(field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
