"""The rows of each step: examples drawn from the blend, what is found for them, packed.

A step's rows depend on the seed, the step and the pinned snapshots alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from openbook_core.errors import ConfigError, InputError
from openbook_core.tokenizer import Tokenizer
from openbook_model import RetroModel, cross_attention_state, weights_hash
from openbook_prompt.chat import ChatFormat
from openbook_prompt.recipe import choose_shown
from openbook_trainer.sft.blend import load_blend, read_examples
from openbook_trainer.sft.books import Books
from openbook_trainer.sft.config import SftConfig
from openbook_trainer.sft.packing import Encoded, Packed, bare_tokens, encode_example, pack
from openbook_trainer.sft.readers import Example

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """The packed rows of a step (None: nothing to learn from), their examples and tokens, and the examples left out."""

    packed: Packed | None
    examples: int
    tokens: int
    left_out: int


@dataclass(frozen=True)
class _Drawn:
    """An example, and the database that it is asked from."""

    example: Example
    database: str


class Batches:
    """Owns the examples and the connection to the retriever."""

    def __init__(self, config: SftConfig, model: RetroModel, tokenizer: Tokenizer) -> None:
        """Raises as `load_blend`, `read_examples` and `Books`; ConfigError for a retriever that is needed and not set."""
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._format = ChatFormat(tokenizer)
        blend = load_blend(config.blend)
        self._weights = [each.weight for each in blend.datasets]
        self._sets = read_examples(blend)
        default = config.passages.database if config.passages else ""
        self._databases = [each.database or default for each in blend.datasets]
        self._reads = cross_attention_state(model) == "on"
        self._grid = model.config.chunk_length if self._reads else 1
        self._around = bare_tokens(self._format, tokenizer, Example("", ""), config.prompt)
        self._limit = self._row_limit()
        self._books = self._open_books()

    @property
    def snapshots(self) -> dict[str, str]:
        """The pinned snapshot of each database."""
        return self._books.snapshots if self._books else {}

    def record(self) -> dict[str, Any]:
        """What has to be the same where a run is resumed."""
        digest = sha256(repr((self._weights, self._sets)).encode()).hexdigest()
        found: dict[str, Any] = {
            "examples_digest": digest,
            "databases": self._databases,
            "snapshots": self.snapshots,
            "weights_hash": weights_hash(self._model),
        }
        if self._config.passages:
            found["k"] = self._config.passages.k
        return found

    def close(self) -> None:
        if self._books:
            self._books.close()

    def at(self, step: int) -> Batch:
        """The rows of a step."""
        config, drawn = self._config, self._draw(step)
        kept: list[tuple[Encoded, str]] = []
        for each, texts in zip(drawn, self._shown(drawn), strict=True):
            encoded = encode_example(
                self._format,
                self._tokenizer,
                each.example,
                texts,
                config.prompt,
                self._limit,
                only_answerable=config.only_answerable,
            )
            if encoded:
                kept.append((encoded, each.database))
        left_out = len(drawn) - len(kept)
        if not kept:
            return Batch(None, 0, 0, left_out)
        packed = pack([each for each, _ in kept], config.row_tokens, self._grid)
        if self._books:
            packed = self._books.with_neighbors(packed, [database for _, database in kept])
        return Batch(packed, len(kept), sum(len(each.ids) for each, _ in kept), left_out)

    def _row_limit(self) -> int:
        """Tokens of the longest example that fits a row with its padding; longer ones are refused or dropped here."""
        config, positions = self._config, self._model.config.max_positions
        limit = config.row_tokens - 2 * (self._grid - 1)
        if config.row_tokens > positions or limit < 1:
            least = 2 * self._grid - 1
            raise ConfigError(
                f"row_tokens is {config.row_tokens}; this model takes {least} to {positions}", field="row_tokens"
            )
        for place, examples in enumerate(self._sets):
            fitting = [each for each in examples if self._fits(each, limit, f"data set {place + 1} of {config.blend}")]
            if len(fitting) < len(examples):
                left_out = len(examples) - len(fitting)
                logger.warning("data set %d: %d of %d examples are too long", place + 1, left_out, len(examples))
            if not fitting:
                raise InputError(
                    f"data set {place + 1} of {config.blend}: all {len(examples)} examples are longer than the {limit} "
                    "tokens that fit into a row; raise row_tokens",
                    field="row_tokens",
                )
            self._sets[place] = fitting
        return limit

    def _fits(self, example: Example, limit: int, place: str) -> bool:
        texts = (example.question, example.answer, *(text for _, text in example.turns))
        # A token has a byte or more, so only what is long has to be counted.
        if sum(self._around + len(text.encode()) for text in texts) <= limit:
            return True
        tokens = bare_tokens(self._format, self._tokenizer, example, self._config.prompt)
        if tokens > limit and self._config.too_long == "stop":
            raise InputError(
                f"{place}, {example.question[:80]!r}: question and answer have {tokens} tokens, {limit} fit into a row; "
                "raise row_tokens, set the data set's max_characters, or too_long to leave out such examples",
                field="row_tokens",
            )
        return tokens <= limit

    def _open_books(self) -> Books | None:
        config = self._config
        asked = {
            name
            for name, rows in zip(self._databases, self._sets, strict=True)
            if self._reads or any(each.passages is None for each in rows)
        }
        if config.passages:
            return Books(config.passages, asked, self._model, self._tokenizer) if asked else None
        if self._reads:
            raise ConfigError(
                "this model reads neighbours in its cross attention; set passages.address and passages.database, "
                "where they are to be found",
                field="passages",
            )
        if any(self._databases):
            raise ConfigError(
                f"the blend names a database ({', '.join(filter(None, self._databases))}); set passages.address, the "
                "retriever that serves it",
                field="passages",
            )
        return None

    def _draw(self, step: int) -> list[_Drawn]:
        """The examples of a step depend on the seed and the step alone."""
        draw = np.random.default_rng([self._config.seed, step])
        numbers = draw.choice(
            len(self._sets), size=self._config.examples, p=np.array(self._weights) / sum(self._weights)
        )
        return [
            _Drawn(self._sets[number][int(draw.integers(len(self._sets[number])))], self._databases[number])
            for number in numbers
        ]

    def _shown(self, drawn: Sequence[_Drawn]) -> list[list[str]]:
        """What is put before the model for each example, best first."""
        shown = [list(each.example.passages or ()) for each in drawn]
        if self._books is None:
            return shown
        for database in self._books.snapshots:
            places = [
                place for place, each in enumerate(drawn) if each.example.passages is None and each.database == database
            ]
            questions = [drawn[place].example.question for place in places]
            found = self._books.passages(database, questions) if questions else []
            for place, question, passages in zip(places, questions, found, strict=True):
                shown[place] = [each.text for each in choose_shown(question, passages, self._config.prompt)]
        return shown
