"""autofaiss: an index of given vectors within given memory; runs in its own environment, so it imports nothing of ours.

    python autofaiss_peer.py VECTORS_FOLDER QUERIES.npy EXPECTED.npy MEMORY_BYTES THREADS

VECTORS_FOLDER holds float32 .npy files. EXPECTED holds the exact neighbours [q, k] of the queries. Writes one line of JSON: how
long it built, and how well and how quickly its index answers with the search settings that it chose.
"""

import contextlib
import importlib.metadata
import json
import sys
import time
from pathlib import Path


def main() -> None:
    import autofaiss
    import faiss
    import numpy as np

    vectors, queries_file, expected_file, memory, threads = sys.argv[1:]
    faiss.omp_set_num_threads(int(threads))
    queries, expected = np.load(queries_file), np.load(expected_file)
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        index, infos = autofaiss.build_index(
            embeddings=vectors,
            index_path="knn.index",
            index_infos_path="infos.json",
            metric_type="ip",
            max_index_memory_usage=f"{max(1, round(int(memory) / 1e6))}MB",
            current_memory_available="4GB",
            nb_cores=int(threads),
            verbose=30,
        )
    seconds = time.perf_counter() - start
    k = expected.shape[1]
    each = []
    for query in queries[:256]:
        begin = time.perf_counter()
        index.search(query[None], k)
        each.append(time.perf_counter() - begin)
    found = index.search(queries, k)[1]
    recall = float(np.mean([len(set(a) & set(b)) / k for a, b in zip(found.tolist(), expected.tolist())]))  # noqa: B905
    print(
        json.dumps(
            {
                "seconds": seconds,
                "factory": infos["index_key"],
                "search": infos["index_param"],
                "bytes": Path("knn.index").stat().st_size,
                "recall": recall,
                "query_ms": 1e3 * float(np.median(each)),
                "versions": {name: importlib.metadata.version(name) for name in ("autofaiss", "faiss-cpu", "numpy")},
            }
        )
    )


if __name__ == "__main__":
    main()
