"""What the generator asks of the retriever: passages of a question, and neighbours of chunks, of one snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from openbook_core.clients import RetrieverClient
from openbook_generator.holds import Holds
from openbook_model import Neighbors
from openbook_prompt.passage import Passage, Pin, find_passages


@dataclass(frozen=True)
class FoundNeighbors:
    """Neighbours of L chunks as the network takes them, and the chunk ids of each chunk's, best first."""

    neighbors: Neighbors
    chunk_ids: list[tuple[int, ...]]


class Retriever:
    """Searches through one client; safe to use from several threads. Errors are the client's."""

    def __init__(self, client: RetrieverClient, timeout_s: float) -> None:
        self.client, self.timeout_s = client, timeout_s
        self._holds = Holds(client)

    def keep(self, pin: Pin, owner: object) -> None:
        """Hold the pin's snapshot as long as `owner` lives, whatever is swapped meanwhile."""
        self._holds.keep(pin, owner)

    def close(self) -> None:
        self._holds.close()
        self.client.close()

    def passages(self, database: str, question: str, k: int, snapshot: str = "") -> tuple[Pin, list[Passage]]:
        """The k best passages, best first, and the snapshot that they are from (the live one if none is named)."""
        pin, found = find_passages(self.client, database, [question], k, snapshot=snapshot, timeout_s=self.timeout_s)
        return pin, found[0]

    def neighbors(self, pin: Pin, texts: Sequence[str], k: int, neighbor_length: int) -> FoundNeighbors:
        """Neighbours of L chunks as ids [L, k, R] and lengths [L, k]: each a chunk and what follows it.

        R is `neighbor_length`. A blank text has none.
        """
        ids_LKR = torch.zeros(len(texts), k, neighbor_length, dtype=torch.long)
        lengths_LK = torch.zeros(len(texts), k, dtype=torch.long)
        chunk_ids: list[tuple[int, ...]] = [() for _ in texts]
        asked = [row for row, text in enumerate(texts) if text.strip()]
        if not asked:
            return FoundNeighbors(Neighbors(ids_LKR, lengths_LK), chunk_ids)
        found = self.client.search_text(
            pin.database,
            [texts[row] for row in asked],
            k,
            snapshot=pin.snapshot,
            tokens=True,
            timeout_s=self.timeout_s,
        )
        table = found.chunks
        assert table.tokens is not None
        assert table.lengths is not None
        for query, place in enumerate(asked):
            chunk_ids[place] = tuple(int(chunk_id) for chunk_id in found.ids[query] if chunk_id >= 0)
            for rank, row in enumerate(found.row_of[query].tolist()):
                if row < 0:
                    continue
                own, following = (int(length) for length in table.lengths[row])
                m = table.chunk_length
                tokens = [*table.tokens[row, :own].tolist(), *table.tokens[row, m : m + following].tolist()]
                tokens = tokens[:neighbor_length]
                ids_LKR[place, rank, : len(tokens)] = torch.tensor(tokens)
                lengths_LK[place, rank] = len(tokens)
        return FoundNeighbors(Neighbors(ids_LKR, lengths_LK), chunk_ids)
