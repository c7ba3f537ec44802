"""RETRO's r: how much of an evaluated chunk stands, run by run, in what was retrieved; and bits per byte by it.

Borgeaud et al. 2021 (arXiv 2112.04426), section 2.6: r = s / m, where s is the longest run of tokens that a chunk shares
with one of its 10 nearest neighbours, each with its continuation. Added here are the neighbours of the chunk before, which
the model reads while it predicts this one: what it could copy from counts as overlap too.

Axes: C chunks, M tokens of a chunk, K neighbours, R tokens of a neighbour, N tokens of a document.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_trainer.eval.clusters import Clusters, as_figure
from openbook_trainer.eval.intervals import ratio
from openbook_trainer.eval.retrieved import Retrieved
from openbook_trainer.eval.texts import MeasuredText

THRESHOLDS = tuple(eighths / 8 for eighths in range(1, 9))
_BLOCK_ELEMENTS = 1 << 20
_NO_TOKEN, _NO_NEIGHBOUR_TOKEN = -1, -2


def longest_runs(
    chunks_CM: NDArray[np.int64],
    lengths_C: NDArray[np.int64],
    neighbor_ids_CKR: NDArray[np.int64],
    neighbor_lengths_CK: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Length [C] of the longest run of consecutive tokens that a chunk and one of its neighbours have in common.

    Tokens from `lengths` on are padding and equal to nothing.
    """
    length = chunks_CM.shape[1]
    neighbors, neighbor_length = neighbor_ids_CKR.shape[1:]
    chunks_CM = np.where(np.arange(length) < lengths_C[:, None], chunks_CM, _NO_TOKEN)
    best_C = np.zeros(len(chunks_CM), np.int64)
    step = max(1, _BLOCK_ELEMENTS // max(1, neighbors * neighbor_length))
    for start in range(0, len(chunks_CM), step):
        some = slice(start, start + step)
        used_CKR = np.arange(neighbor_length) < neighbor_lengths_CK[some, :, None]
        found_CKR = np.where(used_CKR, neighbor_ids_CKR[some], _NO_NEIGHBOUR_TOKEN)
        # run[r]: length of the common run that ends at token `place` of the chunk and token r of the neighbour.
        run_CKR, longest_CKR = np.zeros((2, *found_CKR.shape), np.int32)
        for place in range(length):
            run_CKR[..., 1:] = run_CKR[..., :-1] + 1
            run_CKR[..., 0] = 1
            run_CKR *= found_CKR == chunks_CM[some, place, None, None]
            np.maximum(longest_CKR, run_CKR, out=longest_CKR)
        best_C[some] = longest_CKR.max(axis=(1, 2), initial=0)
    return best_C


def overlaps(texts: Sequence[MeasuredText], retrieved: Retrieved, chunk_length: int) -> list[NDArray[np.float64]]:
    """r [C] in 0..1 of every chunk of each text, the last one by its own length; 0 where nothing was found."""
    found = []
    for text, nearest in zip(texts, retrieved.nearest, strict=True):
        ids_CKR, lengths_CK = nearest.ids_BLKR[0], nearest.lengths_BLK[0]
        chunks = len(ids_CKR)
        padded = np.full(chunks * chunk_length, _NO_TOKEN, np.int64)
        padded[: len(text.tokens_N)] = text.tokens_N
        lengths_C = np.minimum(chunk_length, len(text.tokens_N) - chunk_length * np.arange(chunks))
        read_ids_CKR, read_lengths_CK = (
            np.zeros_like(ids_CKR[:, : retrieved.k]),
            np.zeros_like(lengths_CK[:, : retrieved.k]),
        )
        read_ids_CKR[1:], read_lengths_CK[1:] = ids_CKR[:-1, : retrieved.k], lengths_CK[:-1, : retrieved.k]
        runs_C = longest_runs(
            padded.reshape(chunks, chunk_length),
            lengths_C,
            np.concatenate([ids_CKR, read_ids_CKR], axis=1),
            np.concatenate([lengths_CK, read_lengths_CK], axis=1),
        )
        found.append(runs_C / lengths_C)
    return found


def by_overlap(
    texts: Sequence[MeasuredText],
    clusters: Clusters,
    overlap: Sequence[NDArray[np.float64]],
    losses: dict[str, list[NDArray[np.float64]]],
    chunk_length: int,
) -> list[dict[str, Any]]:
    """Bits per byte OFF and ON, and their paired difference, over the chunks with r up to each of THRESHOLDS.

    `losses` [N - 1] as from `token_losses`. A figure is None where no byte belongs to such a chunk; clusters without such
    chunks do not count for standard errors.
    """
    chunk_of = [np.arange(1, len(text.tokens_N)) // chunk_length for text in texts]
    bits = {name: [nats / math.log(2) for nats in losses[name]] for name in ("off", "on")}
    bits["on_minus_off"] = [on - off for on, off in zip(bits["on"], bits["off"], strict=True)]
    rows = []
    for threshold in THRESHOLDS:
        inside = [(r <= threshold)[chunks].astype(np.float64) for r, chunks in zip(overlap, chunk_of, strict=True)]
        tokens_C = clusters.totals(inside)
        bytes_C = clusters.totals([text.token_bytes[1:] * mask for text, mask in zip(texts, inside, strict=True)])
        kept = tokens_C > 0
        row: dict[str, Any] = {
            "r_at_most": threshold,
            "chunks": sum(int((r <= threshold).sum()) for r in overlap),
            "clusters": int(kept.sum()),
            "tokens": int(tokens_C.sum()),
        }
        for name, values in bits.items():
            totals_C = clusters.totals([value * mask for value, mask in zip(values, inside, strict=True)])
            found = ratio(totals_C[kept], bytes_C[kept]) if bytes_C.sum() else None
            row[name] = as_figure("bits_per_byte", found)
        rows.append(row)
    return rows
