"""sentence-transformers behind lines of JSON; runs in the peer's own environment, so it imports nothing of ours.

    python sentence_transformers_peer.py MODEL_FOLDER DTYPE...

Writes one line with versions and threads when the model is loaded once for each dtype. Then for each line
{"texts", "dtype", "batch", "vectors"} one with `seconds` and `cpu_s` of `encode` alone and, where asked for, the float32 vectors
row by row in base64.
"""

import base64
import json
import os
import sys
import time


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(value: dict[str, object]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    import numpy as np
    import sentence_transformers
    import torch
    import transformers

    folder, *dtypes = sys.argv[1:]
    models = {
        dtype: sentence_transformers.SentenceTransformer(folder, model_kwargs={"dtype": getattr(torch, dtype)})
        for dtype in dtypes
    }
    versions = {each.__name__: each.__version__ for each in (sentence_transformers, torch, transformers)}
    answer({"versions": versions, "threads": torch.get_num_threads()})
    for line in sys.stdin:
        request = json.loads(line)
        start, processor = time.perf_counter(), time.process_time()
        vectors = models[request["dtype"]].encode(
            request["texts"], batch_size=request["batch"], show_progress_bar=False
        )
        times = {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - processor}
        data = np.ascontiguousarray(vectors, "<f4").tobytes() if request["vectors"] else b""
        answer({**times, "vectors": base64.b64encode(data).decode()})


if __name__ == "__main__":
    main()
