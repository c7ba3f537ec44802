"""Held-out loss without retrieval (OFF), with it (ON), and with another sequence's neighbours (shuffled)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from openbook_core.errors import UnavailableError
from openbook_model import RetroModel
from openbook_trainer.data import IGNORED, Batch, SequenceOrder
from openbook_trainer.neighbours import Neighbors, NeighborSource, NoSource


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean nats per token over the same tokens. Shuffled that is no worse than ON says that retrieval is not used.

    `loss_shuffled` is None where one sequence is all there is: it has no other's neighbours to be given. Of a model that
    reads none, `loss_on` is, too.
    """

    loss_off: float
    loss_on: float | None
    loss_shuffled: float | None


class Evaluator:
    """Fixed held-out sequences with their neighbours, fetched once: the snapshot is pinned, so they do not change."""

    def __init__(self, order: SequenceOrder, source: NeighborSource, sequences: int, micro: int) -> None:
        """Raises what `source` raises, and UnavailableError where it masked a batch, whose ON loss would be OFF."""
        self._batches = list(order.fixed(sequences, micro))
        self._neighbors = [source.fetch(batch) for batch in self._batches]
        masked = sum(found.masked for found in self._neighbors)
        if masked:
            raise UnavailableError(
                f"the retriever failed for {masked} of {len(self._batches)} batches of held-out sequences, so the loss "
                "with retrieval cannot be measured; retrieval.on_failure=mask is for training batches only. Run the "
                "same command again when the retriever answers",
                field="retrieval.on_failure",
            )
        rows = sum(len(found.ids_BLKR) for found in self._neighbors)
        self._reads = not isinstance(source, NoSource)
        self._shuffled = _half_turn(self._neighbors) if rows > 1 and self._reads else None

    @torch.no_grad()
    def measure(self, model: RetroModel, device: torch.device) -> HeldOutLoss:
        """The three losses; every process computes all of it. The model goes back to training mode."""
        model.eval()
        off: list[Neighbors | None] = [None] * len(self._batches)
        losses = HeldOutLoss(
            self._mean(model, off, device),
            self._mean(model, self._neighbors, device) if self._reads else None,
            None if self._shuffled is None else self._mean(model, self._shuffled, device),
        )
        model.train()
        return losses

    def _mean(
        self, model: RetroModel, neighbors: list[Neighbors | None] | list[Neighbors], device: torch.device
    ) -> float:
        total, count = 0.0, 0
        for batch, found in zip(self._batches, neighbors, strict=True):
            total += float(summed_loss(model, batch, found, device))
            count += int((batch.labels_BT != IGNORED).sum())
        return total / count


def summed_loss(model: RetroModel, batch: Batch, neighbors: Neighbors | None, device: torch.device) -> Tensor:
    """Sum of cross entropies (nats, float32) over the batch's labels; OFF where `neighbors` is None."""

    def tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(array).to(device)

    lengths_BLK, all_or_none = (None, False) if neighbors is None else neighbors.padding(model.config)
    logits_BTV = model(
        tensor(batch.input_ids_BT),
        None if neighbors is None else tensor(neighbors.ids_BLKR),
        None if lengths_BLK is None else tensor(lengths_BLK),
        all_or_none=all_or_none,
        first_chunk=batch.first_chunk,
        document_ids_BT=None if batch.document_ids_BT is None else tensor(batch.document_ids_BT),
    )
    labels_BT = tensor(batch.labels_BT)
    return cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum")


def _half_turn(neighbors: list[Neighbors]) -> list[Neighbors]:
    """Each sequence gets the neighbours of the one half of the set further on."""
    ids = np.concatenate([found.ids_BLKR for found in neighbors])
    lengths = np.concatenate([found.lengths_BLK for found in neighbors])
    turn = len(ids) // 2
    ids, lengths = np.roll(ids, turn, axis=0), np.roll(lengths, turn, axis=0)
    turned, start = [], 0
    for found in neighbors:
        end = start + len(found.ids_BLKR)
        turned.append(Neighbors(ids[start:end], lengths[start:end]))
        start = end
    return turned
