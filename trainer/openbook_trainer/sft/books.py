"""What tuning asks the running retriever: passages for the prompt, and neighbours for the cross attention.

Axes: B rows, L chunks of a row, K neighbours, R tokens of a neighbour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

import torch

from openbook_core.clients import RetrieverClient
from openbook_core.tokenizer import Tokenizer
from openbook_model import RetroModel, cross_attention_state
from openbook_prompt.passage import Passage, find_passages
from openbook_trainer.finder import NeighborFinder
from openbook_trainer.neighbours import Retries
from openbook_trainer.sft.config import PassageSettings
from openbook_trainer.sft.packing import Packed, chunks_of

RETRY_BUDGET = 5.0


class Books:
    """The databases of a run, each pinned to the snapshot that was live at its start."""

    def __init__(
        self, settings: PassageSettings, databases: Iterable[str], model: RetroModel, tokenizer: Tokenizer
    ) -> None:
        """Raises what the retriever's client does: it does not answer, or has no such database.

        For a model that reads neighbours, also MismatchError: a database of another tokenizer or chunk length.
        """
        self._settings, self._tokenizer, self._config = settings, tokenizer, model.config
        self._retries = Retries(RETRY_BUDGET)
        self._find: dict[str, NeighborFinder] = {}
        with ExitStack() as stack:
            self._client = stack.enter_context(RetrieverClient(settings.address))
            self.snapshots = {name: self._client.describe(name).live_snapshot for name in sorted(set(databases))}
            if cross_attention_state(model) == "on":
                for name, snapshot in self.snapshots.items():
                    finder = NeighborFinder(
                        settings.address, name, snapshot, model.config, tokenizer, settings.deadline_s
                    )
                    self._find[name] = stack.enter_context(closing(finder))
            self._open = stack.pop_all()

    def close(self) -> None:
        self._open.close()

    def passages(self, database: str, questions: Sequence[str]) -> list[list[Passage]]:
        """The k passages of each question, best first; failed calls are repeated as for neighbours."""
        settings, snapshot = self._settings, self.snapshots[database]
        _, found = self._retries.call(
            lambda: find_passages(
                self._client, database, questions, settings.k, snapshot=snapshot, timeout_s=settings.deadline_s
            )
        )
        return found

    def with_neighbors(self, packed: Packed, databases: Sequence[str]) -> Packed:
        """`packed` with the neighbours of its chunks, asked for as in serving; as it is for a model that reads none.

        `databases`: that of each example.
        """
        if not self._find:
            return packed
        m = self._config.chunk_length
        chunks = chunks_of(packed, m)
        shape = (len(packed.ids_BT), packed.ids_BT.shape[1] // m, self._config.num_neighbors)
        ids_BLKR = torch.zeros(*shape, self._config.neighbor_length, dtype=torch.int64)
        lengths_BLK = torch.zeros(shape, dtype=torch.int64)
        for name, find in self._find.items():
            asked = [each for each in chunks if databases[each.example] == name]
            if asked:
                found = find([self._tokenizer.decode(each.ids, skip_special=True) for each in asked])
                assert found.lengths_LK is not None
                rows, places = torch.tensor([[each.row, each.place] for each in asked]).T
                ids_BLKR[rows, places, :, : found.ids_LKR.shape[2]] = found.ids_LKR
                lengths_BLK[rows, places] = found.lengths_LK
        return replace(packed, neighbor_ids_BLKR=ids_BLKR, neighbor_lengths_BLK=lengths_BLK)
