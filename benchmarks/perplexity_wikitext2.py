"""SmolLM2-135M without retrieval on WikiText-2's test set: our perplexity beside transformers' own.

    python benchmarks/perplexity_wikitext2.py [--quick] [--json FILE]

The first tokens of `wikitext2/wiki.test.tokens.zst` (OPENBOOK_DATA) by `openbook eval perplexity`, and by transformers'
model, tokenizer and loss in the loop of its guide "Perplexity of fixed-length models", from the same weights in float32.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import environment, figure_lines, run_benchmark
from numpy.typing import NDArray

DATA = Path("wikitext2", "wiki.test.tokens.zst")
BLOCK, STRIDE = 1024, 512
FULL, QUICK = 10_241, 513
MOST = 1e-3


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where the two agree to 0.1%, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="some hundred tokens")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args(arguments)
    data = Path(os.environ.get("OPENBOOK_DATA", "data")) / DATA
    return run_benchmark(
        lambda _: run(data, QUICK if options.quick else FULL),
        figure_lines,
        limit_s=3600,
        json_file=options.json,
        passed=lambda result: result["relative_difference"] <= MOST,
    )


def run(data: Path, tokens: int) -> dict[str, Any]:
    """{figures, raw}. Raises OpenbookError for data that is not there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from openbook_core.tokenizer import Tokenizer
    from openbook_core.weights import DEFAULT_MODEL, resolve_model
    from openbook_trainer.eval.perplexity import PerplexityConfig, evaluate
    from openbook_trainer.eval.texts import read_texts

    circumstances = environment()
    settings = {"model": DEFAULT_MODEL, "data": data, "limit_tokens": tokens, "block": BLOCK, "stride": STRIDE}
    ours = evaluate(PerplexityConfig.parse({**settings, "device": "cpu"}))
    source = resolve_model(DEFAULT_MODEL)
    folder, file = (source.parent, source.name) if source.is_file() else (source, None)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    (text,) = read_texts(data, Tokenizer.load(DEFAULT_MODEL))
    theirs = AutoTokenizer.from_pretrained(folder, gguf_file=file)(text.text)["input_ids"]
    nats = transformers_nats(model, np.asarray(theirs[:tokens]), BLOCK + 1, STRIDE)
    perplexity = ours["off"]["perplexity"]
    return {
        "perplexity": perplexity,
        "transformers_perplexity": math.exp(nats),
        "relative_difference": abs(perplexity / math.exp(nats) - 1),
        "tokens_scored": ours["tokens_scored"],
        "same_tokens": theirs[:tokens] == text.tokens_N[:tokens].tolist(),
        "raw": {
            "command": " ".join(["python benchmarks/perplexity_wikitext2.py", *sys.argv[1:]]),
            **circumstances,
            "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
            "tokens_of_the_set": len(theirs),
            "transformers": {"nats_per_token": nats, "max_length": BLOCK + 1, "stride": STRIDE},
            "ours": ours,
        },
    }


@torch.no_grad()
def transformers_nats(model: Any, tokens_N: NDArray[Any], max_length: int, stride: int) -> float:
    """Mean nats per token as in transformers' guide "Perplexity of fixed-length models", with the model's own loss."""
    ids = torch.from_numpy(np.asarray(tokens_N, np.int64))[None]
    total, count, previous_end = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        inputs = ids[:, begin:end]
        labels = inputs.clone()
        labels[:, : -(end - previous_end)] = -100
        scored = int((labels[:, 1:] != -100).sum())
        total += float(model(inputs, labels=labels).loss) * scored
        count += scored
        previous_end = end
        if end == ids.shape[1]:
            break
    assert count == ids.shape[1] - 1
    return total / count


if __name__ == "__main__":
    sys.exit(main())
