"""One request from its fields to its events: retrieval, prompt, job."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from openbook_core.errors import (
    ArgumentError,
    AuthenticationError,
    ForbiddenError,
    NotFoundError,
    OpenbookError,
    PreconditionError,
    UnavailableError,
)
from openbook_core.fingerprint import Fingerprint, require_equal
from openbook_core.tokenizer import Tokenizer
from openbook_core.tracing import annotate
from openbook_generator.config import GeneratorConfig
from openbook_generator.engine import Engine
from openbook_generator.job import Event, Job, Piece
from openbook_generator.metrics import Metrics
from openbook_generator.retrieval import Retriever
from openbook_generator.sampling import Sampler
from openbook_generator.schemas import ChatRequest, CompletionRequest
from openbook_model import RetroModel, cross_attention_state, weights_hash
from openbook_prompt.chat import ChatFormat, Encoded, fit, require_fit, stop_ids
from openbook_prompt.passage import Extract, Passage, Pin
from openbook_prompt.recipe import Message, build_messages, build_prompt, choose_shown, lead_in


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to decode: its prompt, the reply's token limit, and its `retrieval` record."""

    prompt: Encoded
    max_tokens: int
    pin: Pin | None
    retrieval: dict[str, Any]


class Generator:
    """Owns the model, its engine and the retriever; methods are safe to call from several threads."""

    def __init__(self, config: GeneratorConfig, model: RetroModel, tokenizer: Tokenizer, retriever: Retriever) -> None:
        self.config, self.model, self.retriever = config, model, retriever
        self.metrics = Metrics()
        self.cross_attention = cross_attention_state(model)
        self.max_context = min(config.max_context, model.config.max_positions)
        self._tokenizer, self._format, self._encoding = tokenizer, ChatFormat(tokenizer), threading.Lock()
        self._checked: set[str] = set()
        self.engine = Engine(
            model,
            tokenizer,
            retriever.neighbors,
            self.metrics,
            slots=config.slots,
            max_context=self.max_context,
            max_queue=config.max_queue,
            retry_after_s=config.retry_after_s,
            max_neighbors=model.config.num_neighbors,
            stop_ids=stop_ids(tokenizer),
        )

    def check_ready(self) -> dict[str, Any]:
        """What is served; raises the reason (UnavailableError and others) while questions cannot be answered."""
        seen = self.retriever.client.highest_epoch(self.config.database)
        found = self.retriever.client.describe(self.config.database, timeout_s=2.0)
        if found.epoch < seen:
            raise UnavailableError(
                f"the retriever is at epoch {found.epoch} of {found.database!r}, this process has seen {seen}: its registry "
                "went back, and requests would be refused"
            )
        return {"status": "ready", "database": found.database, "snapshot": found.live_snapshot, "epoch": found.epoch}

    def weights(self) -> str:
        """A hash over every tensor of the model as it is in memory now."""
        return weights_hash(self.model)

    def prepare(self, request: CompletionRequest | ChatRequest) -> Prepared:
        """Search, then build the prompt. Raises ArgumentError for what does not fit, else the retriever's errors.

        What is wrong with the request itself is found before the search.
        """
        self._check(request)
        field = request.question_field
        with self._encoding:
            bare = self._encode(request, [])
        reply_tokens = self._reply_tokens(request, len(bare.ids))
        limit = self.max_context - reply_tokens
        require_fit(bare, limit, field)
        try:
            pin, passages = self._retrieve(request)
        except OpenbookError as error:
            raise told_to_caller(error, request) from error
        if pin is not None:
            annotate(database=pin.database, snapshot=pin.snapshot)
        shown = choose_shown(request.question, passages, self.config.prompt)
        with self._encoding:
            texts = [extract.text for extract in shown]
            prompt = fit(self._tokenizer, texts, limit, lambda kept: self._encode(request, kept), field)
        state: str = self.cross_attention if request.retrieval.enabled else "off (disabled)"
        record = {
            "database": pin.database if pin else None,
            "snapshot": pin.snapshot if pin else None,
            "epoch": pin.epoch if pin else None,
            "cross_attention": state,
            **_prompt_record(passages, shown, prompt),
            "neighbors": [],
        }
        prepared = Prepared(prompt, reply_tokens, pin if self.cross_attention == "on" else None, record)
        if prepared.pin is not None:
            self.retriever.keep(prepared.pin, prepared)
        return prepared

    async def decode(self, request: CompletionRequest | ChatRequest, prepared: Prepared) -> AsyncGenerator[Piece]:
        """The pieces of the reply as they come; the last has a finish reason. Closing the iterator cancels the job.

        A chat's reply begins with no blank.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def emit(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(
            prompt=prepared.prompt.ids,
            max_tokens=prepared.max_tokens,
            sampler=Sampler(request.temperature, request.top_p, request.seed),
            stop=request.stops,
            emit=emit,
            pin=prepared.pin,
            neighbors=self.model.config.num_neighbors,
        )
        self.engine.submit(job)
        chat, begun = isinstance(request, ChatRequest), False
        try:
            while True:
                event = await events.get()
                if isinstance(event, OpenbookError):
                    raise told_to_caller(event, request) from event
                if isinstance(event, Exception):
                    raise event
                if chat and not begun:
                    event = replace(event, text=event.text.lstrip())
                    begun = bool(event.text)
                if event.finish_reason:
                    prepared.retrieval["neighbors"] = [
                        {"positions": list(each.positions), "chunk_ids": list(each.chunk_ids)} for each in job.attended
                    ]
                yield event
                if event.finish_reason:
                    return
        finally:
            job.cancel()

    def close(self) -> None:
        self.engine.close()
        self.retriever.close()

    def _check(self, request: CompletionRequest | ChatRequest) -> None:
        if request.model not in (None, self.config.model):
            raise ArgumentError(f"model {request.model!r} is not served; {self.config.model!r} is", field="model")
        k = request.retrieval.k
        if k is not None and k > self.config.max_k:
            raise ArgumentError(f"k may be at most {self.config.max_k}, given {k}", field="retrieval.k")
        if request.retrieval.enabled and not request.question.strip():
            raise ArgumentError(
                f"{request.question_field}: is blank, so there is nothing to search for; write something or set "
                "retrieval.enabled to false",
                field=request.question_field,
            )

    def _retrieve(self, request: CompletionRequest | ChatRequest) -> tuple[Pin | None, list[Passage]]:
        options = request.retrieval
        if not options.enabled:
            return None, []
        k = self.config.k if options.k is None else options.k
        database = options.database or self.config.database
        if self.cross_attention == "on":
            self._check_tokens(database)
        pin, passages = self.retriever.passages(database, request.question, max(k, 1), options.snapshot)
        return pin, passages[:k]

    def _check_tokens(self, database: str) -> None:
        """Neighbours enter the network as tokens, so a database's tokenizer must be the model's (MismatchError)."""
        if database in self._checked:
            return
        contract = json.loads(self.retriever.client.describe(database).contract_json)
        theirs = Fingerprint(contract["tokenizer"])
        with self._encoding:
            ours = self._tokenizer.fingerprint
        require_equal("tokenizer", ours, theirs, "the model", f"database {database!r}")
        length = Fingerprint({"chunk_length": self.model.config.chunk_length})
        their_length = Fingerprint({"chunk_length": contract["chunk_length"]})
        require_equal("chunk length", length, their_length, "the model", f"database {database!r}")
        self._checked.add(database)

    def _encode(self, request: CompletionRequest | ChatRequest, passages: Sequence[str]) -> Encoded:
        if isinstance(request, CompletionRequest):
            return self._format.encode_text(build_prompt(request.prompt, passages, self.config.prompt))
        earlier = [Message(message.role, message.text) for message in request.messages[:-1]]
        last = build_messages(request.messages[-1].text, passages, self.config.prompt)
        lead = lead_in(request.question, self.config.prompt) if passages else ""
        return self._format.encode_chat([*earlier, *last], lead)

    def _reply_tokens(self, request: CompletionRequest | ChatRequest, bare: int) -> int:
        asked = request.reply_limit
        if asked is None:
            return max(1, min(self.config.default_max_tokens, self.max_context - bare))
        if asked >= self.max_context:
            raise ArgumentError(
                f"{request.reply_limit_field} {asked} leaves no room for a prompt in a context of {self.max_context} "
                "tokens",
                field=request.reply_limit_field,
            )
        return asked


def told_to_caller(error: OpenbookError, request: CompletionRequest | ChatRequest) -> OpenbookError:
    """The retriever's error in the words of the REST request.

    Its `texts` are the caller's prompt or messages. A database or snapshot that is missing is the caller's mistake
    only where the caller named one; else the service is not ready (503). A token that it refuses is this service's own,
    so the service is not ready either.
    """
    if isinstance(error, ArgumentError) and (error.field or "").startswith("texts"):
        field = request.question_field
        return ArgumentError(f"{field}: the retriever refuses it as a query: {error.message}", field=field)
    if isinstance(error, AuthenticationError | ForbiddenError):
        return UnavailableError(f"the retriever refuses this service's token: {error.message}", reason=error.reason)
    named_by_us = isinstance(error, ArgumentError) and error.field in ("database", "snapshot")
    if not request.retrieval.names_source and (isinstance(error, NotFoundError | PreconditionError) or named_by_us):
        return UnavailableError(
            f"the configured database cannot be read now: {error.message}",
            reason=error.reason,
            retry_after_s=error.retry_after_s,
        )
    return error


def _prompt_record(passages: Sequence[Passage], shown: Sequence[Extract], prompt: Encoded) -> dict[str, Any]:
    """`shown`: exactly what the prompt holds of the book, best first, with the chunks it is from and where it stands.

    `passages`: every passage that was found, best first; `span` is where the first text from it stands, else null.
    """
    spans: dict[int, dict[str, list[int]]] = {}
    texts = []
    for place in sorted(prompt.spans):
        characters, tokens = prompt.spans[place]
        span = {"characters": list(characters), "tokens": list(tokens)}
        texts.append({"text": prompt.texts[place], "chunk_ids": list(shown[place].chunk_ids), "span": span})
        for rank in shown[place].ranks:
            spans.setdefault(rank, span)
    found = [{**asdict(passage), "span": spans.get(rank)} for rank, passage in enumerate(passages)]
    return {"shown": texts, "passages": found}
