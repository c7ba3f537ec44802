"""retro-pytorch from a folder of .txt files to the neighbours of each chunk; runs in its own environment, so it imports
nothing of ours.

    python retro_pytorch_peer.py TEXT_FOLDER MODEL_FOLDER

Works in the current folder. Its BERT comes from a hub by torch.hub: `get_bert` and `get_tokenizer` are replaced to give it
the model of MODEL_FOLDER, and the ids of its first and last token are set to that tokenizer's. All else is as it comes: batches
of 16, the index that autofaiss chooses for 100 MB, neighbours of the same document masked. Writes one line of JSON.
"""

import contextlib
import functools
import importlib.metadata
import json
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    import torch
    import transformers
    from retro_pytorch import retrieval

    texts, folder = sys.argv[1:]
    model, tokenizer = (
        transformers.AutoModel.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    model.eval()
    tokenizer.model_max_length = 1 << 40  # it cuts after it tokenises
    retrieval.get_bert, retrieval.get_tokenizer = lambda: model, lambda: tokenizer
    retrieval.SOS_ID = tokenizer.cls_token_id
    # Its own option embed_dim does not reach this function.
    retrieval.chunks_to_index_and_embed = functools.partial(
        retrieval.chunks_to_index_and_embed, embed_dim=model.config.hidden_size
    )
    neighbours = 2
    seconds, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name], start = time.perf_counter() - start, time.perf_counter()

    with contextlib.redirect_stdout(sys.stderr):  # it prints a line for each batch
        counts = retrieval.text_folder_to_chunks_(
            folder=texts,
            chunks_memmap_path="chunks.dat",
            seqs_memmap_path="seqs.dat",
            doc_ids_memmap_path="documents.dat",
        )
        lap("chunk")
        embed = retrieval.chunks_to_embeddings_

        def timed(**given: object) -> None:
            lap("prepare")
            embed(**given)
            lap("embed")

        retrieval.chunks_to_embeddings_ = timed
        path, index = retrieval.chunks_to_precalculated_knn_(
            num_nearest_neighbors=neighbours,
            num_chunks=counts["chunks"],
            chunk_size=64,
            chunk_memmap_path="chunks.dat",
            doc_ids_memmap_path="documents.dat",
        )
        lap("index and neighbours")
    print(
        json.dumps(
            {
                **counts,
                "seconds": sum(seconds.values()),
                "stage_s": seconds,
                "index": type(index).__name__,
                "neighbours_bytes": Path(path).stat().st_size,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "threads": torch.get_num_threads(),
                "versions": {
                    name: importlib.metadata.version(name)
                    for name in ("retro-pytorch", "autofaiss", "faiss-cpu", "torch", "transformers", "numpy", "pyarrow")
                },
            }
        )
    )


if __name__ == "__main__":
    main()
