"""The contract of a database: what every snapshot of it agrees on, fixed by the first one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openbook_core.errors import CorruptError, Reason
from openbook_core.fingerprint import Fingerprint, require_equal

METRIC_INNER_PRODUCT = "inner_product"


@dataclass(frozen=True)
class Contract:
    """Tokenizer, embedder (with the passage template), vector dimension, metric and chunk length."""

    tokenizer: Fingerprint
    embedder: Fingerprint
    passage_template: str
    dimension: int
    metric: str
    chunk_length: int

    @property
    def fingerprint(self) -> Fingerprint:
        """The contract as one record, which is compared field by field."""
        return Fingerprint(self.to_record())

    def to_record(self) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer.record,
            "embedder": self.embedder.record,
            "passage_template": self.passage_template,
            "dimension": self.dimension,
            "metric": self.metric,
            "chunk_length": self.chunk_length,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], source: str) -> Contract:
        """Raises CorruptError naming `source` where a field is missing."""
        try:
            return cls(
                tokenizer=Fingerprint(record["tokenizer"]),
                embedder=Fingerprint(record["embedder"]),
                passage_template=str(record["passage_template"]),
                dimension=int(record["dimension"]),
                metric=str(record["metric"]),
                chunk_length=int(record["chunk_length"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"{source}: the contract cannot be read: {error!r}", reason=Reason.CORRUPT) from error

    def require_equal(self, theirs: Contract, ours_name: str, theirs_name: str) -> None:
        """Raise MismatchError that names each differing field with both sides, unless the two are equal."""
        require_equal("contract", self.fingerprint, theirs.fingerprint, ours_name, theirs_name)
