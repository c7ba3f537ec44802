"""What every endpoint does with a call before it waits: check, tokenise on the caller's thread, queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError, MismatchError, OpenbookError, OverloadedError
from openbook_core.fingerprint import Fingerprint
from openbook_embedder.batching import Batcher
from openbook_embedder.cache import VectorCache
from openbook_embedder.config import EmbedderConfig
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.metrics import EmbedderMetrics
from openbook_embedder.ticket import Ticket
from openbook_embedder.tokens import TokenizedTexts

MAX_TEXT_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Call:
    """Texts, or token ids as the encoder reads them with the digest of the `tokenizer` that made them.

    `role` is "query" or "passage". `texts_field` and `ids_field` are what the endpoint calls the lists, for errors.
    """

    role: str
    truncate: bool
    texts: Sequence[str] = ()
    token_ids: Sequence[Sequence[int]] = ()
    tokenizer: str = ""
    texts_field: str = "texts"
    ids_field: str = "token_ids"


class Intake:
    """The one admission of all endpoints: `max_calls` at a time, and the batcher's rule in tokens."""

    def __init__(
        self,
        engine: EncoderEngine,
        batcher: Batcher,
        config: EmbedderConfig,
        metrics: EmbedderMetrics,
        cache: VectorCache | None = None,
    ) -> None:
        self.engine, self.config, self.metrics = engine, config, metrics
        self.tokenizer = Fingerprint(engine.fingerprint.record["tokenizer"])
        self._batcher = batcher
        self._cache = cache
        self._free = threading.BoundedSemaphore(config.max_calls)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """One of the `max_calls` places of running calls and streams; raises OverloadedError where all are taken."""
        if not self._free.acquire(blocking=False):
            raise OverloadedError(
                f"{self.config.max_calls} calls and streams are running, the most there may be (max_calls); come back",
                retry_after_s=self._batcher.retry_delay(),
            )
        try:
            yield
        finally:
            self._free.release()

    @contextmanager
    def counted(self, endpoint: str) -> Iterator[None]:
        """Count the outcome of a call to `endpoint`."""
        outcome = "INTERNAL"
        try:
            yield
            outcome = "OK"
        except OpenbookError as error:
            outcome = error.reason.value
            raise
        finally:
            self.metrics.requests.labels(endpoint, outcome).inc()

    @property
    def ready(self) -> bool:
        """Whether the encoder answers."""
        return self._batcher.ready

    def tokenize(self, call: Call) -> TokenizedTexts:
        """Raises ArgumentError naming the field at fault, MismatchError for token ids of another tokenizer."""
        if bool(call.texts) == bool(call.token_ids):
            given = "both are given" if call.texts else "the list is empty"
            raise ArgumentError(
                f"{call.texts_field}: {given}; give at least one text, or the token ids of at least one",
                field=call.texts_field,
            )
        start = time.monotonic()
        tokenized = self._take_ids(call) if call.token_ids else self._take_texts(call)
        self.metrics.stage_seconds.labels("tokenize").observe(time.monotonic() - start)
        if sum(tokenized.counts) > self.config.max_queue_tokens:
            raise ArgumentError(
                f"{call.texts_field}: {sum(tokenized.counts)} tokens, at most {self.config.max_queue_tokens} in one call "
                "(max_queue_tokens); send fewer texts in each",
                field=call.texts_field,
            )
        return tokenized

    def submit(self, tokenized: TokenizedTexts, deadline: float | None) -> Ticket:
        """Queue those of a call's texts that the cache does not know; raises as `Batcher.submit`."""
        known = self._look_up(tokenized.ids, deadline)
        return self._remember(self._batcher.submit(tokenized.ids, deadline, known))

    def feed(
        self, tokenized: TokenizedTexts, deadline: float | None, *, exclusive: bool, gone: threading.Event
    ) -> Ticket:
        """Queue a stream's message once there is room; raises as `Batcher.feed`.

        An `exclusive` one neither asks nor fills the cache: its vectors' last bits follow from the message.
        """
        if exclusive:
            if self._cache is not None:
                self._cache.bypass(tokenized.ids)
            batches = self.engine.batches(tokenized.ids)
            return self._batcher.feed(tokenized.ids, deadline, batches=batches, gone=gone)
        known = self._look_up(tokenized.ids, deadline)
        return self._remember(self._batcher.feed(tokenized.ids, deadline, batches=None, gone=gone, known=known))

    def _look_up(self, ids: Sequence[Sequence[int]], deadline: float | None) -> Sequence[NDArray[np.float32] | None]:
        if self._cache is None:
            return ()
        start = time.monotonic()
        known = self._cache.look_up(ids, deadline)
        self.metrics.stage_seconds.labels("cache").observe(time.monotonic() - start)
        return known

    def _remember(self, ticket: Ticket) -> Ticket:
        """Have the cache keep what is encoded for the ticket."""
        cache = self._cache

        def keep(vectors: Future[NDArray[np.float32]]) -> None:
            if cache is not None and vectors.exception() is None:
                cache.keep([ticket.ids[place] for place in ticket.missing], vectors.result()[ticket.missing])

        if cache is not None and ticket.missing:
            ticket.vectors.add_done_callback(keep)
        return ticket

    def _take_texts(self, call: Call) -> TokenizedTexts:
        self._require_count(len(call.texts), call.texts_field)
        for place, text in enumerate(call.texts):
            field = _place(call.texts_field, place)
            if not text:
                raise ArgumentError(f"{field}: is empty; leave it out", field=field)
            if len(text) > MAX_TEXT_CHARACTERS:
                raise ArgumentError(
                    f"{field}: {len(text)} characters, at most {MAX_TEXT_CHARACTERS}; the encoder reads only "
                    f"{self.engine.max_tokens} tokens, so split the text",
                    field=field,
                )
        tokenized = self.engine.tokenize(call.texts, call.role)
        if not call.truncate and True in tokenized.truncated:
            field = _place(call.texts_field, tokenized.truncated.index(True))
            raise ArgumentError(
                f"{field}: longer than the encoder's {self.engine.max_tokens} tokens; shorten it, or set truncate to "
                "have it cut",
                field=field,
            )
        return tokenized

    def _take_ids(self, call: Call) -> TokenizedTexts:
        self._require_count(len(call.token_ids), call.ids_field)
        if not call.tokenizer:
            raise ArgumentError(
                f"tokenizer: token ids need the digest of the tokenizer that made them, here {self.tokenizer.digest}; give "
                "it, or send text (a client that makes OpenAI's ids must be told to: LangChain by "
                "check_embedding_ctx_length=False)",
                field="tokenizer",
            )
        if call.tokenizer != self.tokenizer.digest:
            raise MismatchError(
                f"tokenizer: the token ids are of {call.tokenizer[:80]}, the encoder reads those of "
                f"{self.tokenizer.digest}; send text",
                field="tokenizer",
            )
        for place, ids in enumerate(call.token_ids):
            self.engine.check_ids(ids, _place(call.ids_field, place))
        return TokenizedTexts([list(ids) for ids in call.token_ids], [False] * len(call.token_ids))

    def _require_count(self, count: int, field: str) -> None:
        if count > self.config.max_texts:
            raise ArgumentError(
                f"{field}: {count} given, at most {self.config.max_texts} in one call; send several calls", field=field
            )


def _place(field: str, place: int) -> str:
    return f"{field}[{place}]"
