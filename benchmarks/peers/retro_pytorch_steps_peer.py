"""retro-pytorch's training steps and generation behind lines of JSON; runs in its own environment, so it imports nothing of
ours.

    python retro_pytorch_steps_peer.py '{"model": {...}, "dtype": "float32", "work": FILE.npz}'

Writes one line when the model is there. Then for each line {"steps": N} one with the seconds of each of N steps (forward,
backward, clipping, fused AdamW), their processor time and the peak of memory; and for {"prompt": P, "tokens": N} one with
the seconds of its own `generate`, with neighbours at hand. bfloat16 is torch.autocast around its forward pass; it has none
of its own.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace


def status_mb(field: str) -> float:
    return int(re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1024


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # it prints at each chunk

    def answer(value: dict[str, object]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    import numpy as np
    import torch
    from retro_pytorch import RETRO, training

    training.EOS_ID = -1  # one of BERT's, at which it would stop
    spec = json.loads(sys.argv[1])
    with np.load(spec["work"]) as file:
        tokens = torch.from_numpy(np.concatenate((file["input_ids"], file["labels"][:, -1:]), axis=1))
        retrieved = torch.from_numpy(file["neighbor_ids"])
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in spec["model"].items()}
    before_mb = status_mb("VmRSS")
    torch.manual_seed(0)
    model = RETRO(**settings).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def arithmetic() -> contextlib.AbstractContextManager[object]:
        if spec["dtype"] == "float32":
            return contextlib.nullcontext()
        return torch.autocast("cpu", getattr(torch, spec["dtype"]))

    def step() -> float:
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with arithmetic():
            loss = model(tokens, retrieved=retrieved, return_loss=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        assert torch.isfinite(loss.detach())
        return time.perf_counter() - start

    def generate(prompt: int, count: int) -> float:
        chunks = SimpleNamespace(
            retro=model,
            chunk_size=model.chunk_size,
            max_seq_len=prompt + count - 1,
            fetch_knn_chunks_fn=lambda past: retrieved[0, 0].expand(len(past), *retrieved.shape[2:]),
            training=True,
            eval=model.eval,
            train=model.train,
        )
        start = time.perf_counter()
        with arithmetic():
            found = training.TrainingWrapper.generate(chunks, tokens[:1, :prompt])
        seconds = time.perf_counter() - start
        assert found.shape[1] == prompt + count
        return seconds

    names = ("retro-pytorch", "torch", "einops", "numpy")
    answer(
        {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "threads": torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in names},
        }
    )
    for line in sys.stdin:
        request = json.loads(line)
        if "steps" in request:
            begun = time.process_time()
            seconds = [step() for _ in range(request["steps"])]
            cpu_s = time.process_time() - begun
            answer({"seconds": seconds, "cpu_s": cpu_s, "peak_mb": status_mb("VmHWM") - before_mb})
        else:
            answer({"seconds": generate(request["prompt"], request["tokens"])})


if __name__ == "__main__":
    main()
