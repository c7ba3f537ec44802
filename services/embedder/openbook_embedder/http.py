"""The embedder over HTTP: OpenAI's /v1/embeddings around the same intake as gRPC.

Beside OpenAI's fields a request may have `input_type` ("query" or "passage"), `truncate`, and `tokenizer`, the digest
that token ids need. OpenAI's clients that know none of them name the role with the model: NAME-query or NAME-passage.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from openbook_core.errors import ArgumentError, NotFoundError, OpenbookError
from openbook_core.http import (
    DrainBody,
    Observe,
    StrictBody,
    error_response,
    http_server,
    parse_body,
    read_body,
    route_error_response,
)
from openbook_core.security.options import Protection
from openbook_core.security.tokens import TokenFile
from openbook_embedder.intake import Call, Intake
from openbook_embedder.ticket import Ticket
from openbook_embedder.tokens import TokenizedTexts

MAX_BODY_BYTES = 16 * 1024 * 1024
# HTTP requests carry no deadline, so this is everybody's.
TIMEOUT_S = 60.0
_ROLES = ("query", "passage")


class EmbeddingsRequest(StrictBody):
    """POST /v1/embeddings. `user` is accepted and not used."""

    model: str
    input: Any
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    input_type: Literal["query", "passage"] | None = None
    truncate: bool = False
    tokenizer: str = ""


def create_app(intake: Intake, tokens: TokenFile | None = None) -> FastAPI:
    """The application around an intake; with `tokens`, requests for vectors and models need one."""
    app = FastAPI(title="Openbook embedder", docs_url=None, redoc_url=None, openapi_url=None)
    created = int(time.time())

    def count(path: str, status: int) -> None:
        intake.metrics.http_replies.labels(path, status).inc()

    app.add_middleware(Observe, count=count, tokens=tokens)
    app.add_middleware(DrainBody)  # around Observe, so that who is refused there sees why

    @app.exception_handler(OpenbookError)
    async def refuse(_: Request, error: OpenbookError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def misdirected(request: Request, error: HTTPException) -> Response:
        return route_error_response(request, error, "POST /v1/embeddings")

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> Response:
        return error_response(OpenbookError(f"unexpected {type(error).__name__}: {error}"))

    @app.post("/v1/embeddings")
    async def embeddings(http: Request) -> Response:
        with intake.counted("HTTP"), intake.slot():
            body = await read_body(http, MAX_BODY_BYTES)
            request, tokenized, ticket = await asyncio.to_thread(_submit, intake, body)
            vectors_ND = await _vectors(http, ticket)
            ticket.trace()
            reply = await asyncio.to_thread(_reply, request, tokenized, ticket.cached, vectors_ND)
            return Response(reply, media_type="application/json")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        name = intake.config.model
        ids = [name, *(f"{name}-{role}" for role in _ROLES)]
        return {
            "object": "list",
            "data": [{"id": each, "object": "model", "created": created, "owned_by": "openbook"} for each in ids],
        }

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        status = {"status": "ready" if intake.ready else "not ready"}
        return JSONResponse(status, status_code=200 if intake.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(intake.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class HttpServer:
    """Serves `app` on a thread of its own until `close`."""

    def __init__(self, app: FastAPI, listener: socket.socket, protection: Protection | None = None) -> None:
        protection = protection or Protection()
        self.address = "{}://{}:{}".format(protection.scheme, *listener.getsockname()[:2])
        self._listener = listener
        self._server = http_server(app, protection)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="embedder-http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer what runs, for at most five seconds, and stop."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


def call_of(request: EmbeddingsRequest, model: str, default_role: str | None) -> Call:
    """Raises ArgumentError naming the field at fault, NotFoundError for another model than `model`."""
    named = {model: None, **{f"{model}-{role}": role for role in _ROLES}}
    if request.model not in named:
        raise NotFoundError(f"model: given {request.model[:80]!r}; served are {', '.join(named)}", field="model")
    role = request.input_type or named[request.model] or default_role
    if role is None:
        raise ArgumentError(
            f"input_type: say query or passage, a wrong role lowers recall; or name the model {model}-query or "
            f"{model}-passage",
            field="input_type",
        )
    if named[request.model] not in (None, role):
        raise ArgumentError(f"input_type: given {role}, but the model is {request.model}", field="input_type")
    texts, token_ids = _split(request.input)
    return Call(
        role=role,
        truncate=request.truncate,
        texts=texts,
        token_ids=token_ids,
        tokenizer=request.tokenizer,
        texts_field="input",
        ids_field="input",
    )


def _split(given: Any) -> tuple[list[str], list[list[int]]]:
    """Texts or lists of token ids: `input` is a string, a list of strings, of token ids, or of lists of token ids."""
    if isinstance(given, str):
        return [given], []
    items = given if isinstance(given, list) else None
    if items and all(isinstance(each, str) for each in items):
        return items, []
    if items and all(_is_id(each) for each in items):
        return [], [items]
    if items and all(isinstance(each, list) and all(map(_is_id, each)) for each in items):
        return [], items
    if items == []:
        return [], []
    raise ArgumentError(
        "input: must be a string, a list of strings, a list of token ids or a list of such lists", field="input"
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _submit(intake: Intake, body: bytes) -> tuple[EmbeddingsRequest, TokenizedTexts, Ticket]:
    request = parse_body(EmbeddingsRequest, body)
    dimension = intake.engine.dimension
    if request.dimensions not in (None, dimension):
        raise ArgumentError(
            f"dimensions: the vectors have {dimension} elements and are not cut; leave it out", field="dimensions"
        )
    tokenized = intake.tokenize(call_of(request, intake.config.model, intake.config.http_role))
    return request, tokenized, intake.submit(tokenized, time.monotonic() + TIMEOUT_S)


async def _vectors(http: Request, ticket: Ticket) -> NDArray[np.float32]:
    """Wait for the ticket; cancels it where the client leaves, fails it where its deadline passes."""
    waiting = asyncio.wrap_future(ticket.vectors)
    while not (await asyncio.wait([waiting], timeout=0.25))[0]:
        if await http.is_disconnected():
            ticket.cancel()
        elif ticket.deadline is not None and ticket.deadline <= time.monotonic():
            ticket.fail(ticket.late())
    return waiting.result()


def _reply(
    request: EmbeddingsRequest, tokenized: TokenizedTexts, cached: int, vectors_ND: NDArray[np.float32]
) -> bytes:
    """OpenAI's list, for each text the tokens read of it and whether it was cut, and how many were cached."""
    rows: list[Any]
    if request.encoding_format == "base64":
        rows = [base64.b64encode(vector_D.astype("<f4").tobytes()).decode() for vector_D in vectors_ND]
    else:
        rows = vectors_ND.tolist()
    total = sum(tokenized.counts)
    body = {
        "object": "list",
        "model": request.model,
        "data": [
            {"object": "embedding", "index": place, "embedding": row, "tokens": tokens, "truncated": truncated}
            for place, (row, tokens, truncated) in enumerate(
                zip(rows, tokenized.counts, tokenized.truncated, strict=True)
            )
        ],
        "usage": {"prompt_tokens": total, "total_tokens": total},
        "cached": cached,
    }
    return json.dumps(body).encode()
