"""Decides for each document in turn whether it stays, and says why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from numpy.typing import NDArray

from openbook_core.tokenizer import Tokenizer
from openbook_database.cleaning.config import CleaningConfig
from openbook_database.cleaning.decontaminate import EvaluationIndex
from openbook_database.cleaning.evaluation import read_evaluation
from openbook_database.cleaning.exact import ExactDuplicates, text_digest
from openbook_database.cleaning.kept import BlockTokens, KeptTokens
from openbook_database.cleaning.near import NearDuplicates, Sketch

EXACT, NEAR, OVERLAP = "exact duplicate", "near duplicate", "evaluation overlap"


class Cleaner:
    """Looks for exact duplicates, evaluation overlap and near-duplicates, in this order, among the documents kept so far.

    Its state follows from the kept documents alone: a build that is gone on with gives back those of the finished blocks.
    """

    def __init__(self, config: CleaningConfig, tokenizer: Tokenizer, read_block: Callable[[int], BlockTokens]) -> None:
        """Raises InputError for an evaluation file that cannot be used."""
        self._exact = ExactDuplicates() if config.dedup != "none" else None
        self._kept = KeptTokens(read_block)
        self._near = NearDuplicates(config.near_threshold, self._kept.tokens) if config.dedup == "near" else None
        self._ids: list[str] = []
        self._evaluation = None
        if config.evaluation:
            texts = (text for path in config.evaluation for text in read_evaluation(path))
            self._evaluation = EvaluationIndex(texts, tokenizer, config.overlap_threshold, config.longest_run)

    @property
    def evaluation_texts(self) -> dict[str, int]:
        """How many evaluation texts are looked for, and how many are too short for it."""
        if self._evaluation is None:
            return {}
        return {"texts": self._evaluation.texts, "short": self._evaluation.short}

    def digest(self, text: str) -> bytes | None:
        """What is to be stored with a document that is kept, and given back by `block_written`."""
        return text_digest(text) if self._exact is not None else None

    def take(self, external_id: str, digest: bytes | None, tokens: NDArray[Any]) -> dict[str, Any] | None:
        """Why the document is left out, as a line of the report; None where it is kept, and known from now on."""
        if self._exact is not None and digest is not None and (twin := self._exact.find(digest)) is not None:
            return {"kind": EXACT, "of": twin}
        if self._evaluation is not None and (overlap := self._evaluation.find(tokens)) is not None:
            return {"kind": OVERLAP, **asdict(overlap)}
        sketch = None
        if self._near is not None:
            sketch = self._near.sketch(tokens)
            if (near := self._near.find(sketch)) is not None:
                return {"kind": NEAR, "of": self._ids[near[0]], "jaccard": near[1]}
        self._keep(external_id, digest, tokens, sketch)
        return None

    def block_written(self, documents: int) -> None:
        """A block is finished, with the next `documents` of the kept ones."""
        if self._near is not None:
            self._kept.block_written(documents)

    def restore(self, external_ids: Sequence[str], digests: Sequence[bytes | None]) -> None:
        """The next block was finished by an earlier run, and holds these documents."""
        if self._exact is not None:
            for external_id, digest in zip(external_ids, digests, strict=True):
                if digest is not None:
                    self._exact.keep(digest, external_id)
        if self._near is not None:
            first = len(self._ids)
            self._ids += external_ids
            self._kept.block_written(len(external_ids))
            for number in range(first, len(self._ids)):
                self._near.keep(self._near.sketch(self._kept.tokens(number)))

    def _keep(self, external_id: str, digest: bytes | None, tokens: NDArray[Any], sketch: Sketch | None) -> None:
        if self._exact is not None and digest is not None:
            self._exact.keep(digest, external_id)
        if self._near is not None and sketch is not None:
            self._ids.append(external_id)
            self._kept.add(tokens)
            self._near.keep(sketch)
