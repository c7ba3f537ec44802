"""The HTTP routes: OpenAI's shapes around `service.Generator`."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from openbook_core.errors import OpenbookError
from openbook_core.http import (
    DrainBody,
    Observe,
    error_body,
    error_response,
    parse_body,
    read_body,
    route_error_response,
)
from openbook_core.security.tokens import TokenFile
from openbook_core.telemetry import get_logger
from openbook_generator.job import Piece
from openbook_generator.schemas import ChatRequest, CompletionRequest
from openbook_generator.service import Generator, Prepared

logger = get_logger(__name__)

PAGE = Path(__file__).with_name("page.html")
MAX_BODY_BYTES = 2 * 1024 * 1024


def create_app(generator: Generator, tokens: TokenFile | None = None) -> FastAPI:
    """The application around a generator, which its caller closes; with `tokens`, /v1 needs one."""
    app = FastAPI(title="Openbook generator", docs_url=None, redoc_url=None, openapi_url=None)
    created = int(time.time())

    def count(path: str, status: int) -> None:
        generator.metrics.requests.labels(path, status).inc()

    app.add_middleware(Observe, count=count, tokens=tokens)
    app.add_middleware(DrainBody)  # around Observe, so that who is refused there sees why

    @app.exception_handler(OpenbookError)
    async def refuse(_: Request, error: OpenbookError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def misdirected(request: Request, error: HTTPException) -> Response:
        return route_error_response(request, error, "POST /v1/chat/completions")

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> Response:
        return error_response(OpenbookError(f"unexpected {type(error).__name__}: {error}"))

    @app.get("/")
    async def page() -> Response:
        return FileResponse(PAGE, media_type="text/html")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answer(
            generator, request, parse_body(CompletionRequest, await read_body(request, MAX_BODY_BYTES))
        )

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(generator, request, parse_body(ChatRequest, await read_body(request, MAX_BODY_BYTES)))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": generator.config.model, "object": "model", "created": created, "owned_by": "openbook"}
        return {"object": "list", "data": [model]}

    @app.get("/v1/weights")
    async def weights() -> dict[str, str]:
        return {"model": generator.config.model, "sha256": await asyncio.to_thread(generator.weights)}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        try:
            return JSONResponse(await asyncio.to_thread(generator.check_ready))
        except OpenbookError as error:
            return JSONResponse({"status": "not ready", "reason": error.message}, status_code=503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(generator.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _answer(generator: Generator, http: Request, request: CompletionRequest | ChatRequest) -> Response:
    generator.engine.reserve()
    release = generator.engine.release
    try:
        prepared = await asyncio.to_thread(generator.prepare, request)
        reply = Reply(generator.config.model, request, prepared)
        if request.stream:
            response = StreamingResponse(_stream(generator, reply, release), media_type="text/event-stream")
            release = _nothing
            return response
        return await _whole(generator, http, reply)
    finally:
        release()


async def _whole(generator: Generator, http: Request, reply: Reply) -> Response:
    work = asyncio.create_task(_collect(generator, reply))
    try:
        while not (await asyncio.wait([work], timeout=0.25))[0]:
            if await http.is_disconnected():
                return Response(status_code=499)
        text, last = work.result()
        return JSONResponse(reply.whole(text, last))
    finally:
        work.cancel()


async def _collect(generator: Generator, reply: Reply) -> tuple[str, Piece]:
    texts, last = [], Piece("", 0)
    async with aclosing(generator.decode(reply.request, reply.prepared)) as pieces:
        async for last in pieces:
            texts.append(last.text)
    return "".join(texts), last


async def _stream(generator: Generator, reply: Reply, release: Callable[[], None]) -> AsyncIterator[str]:
    try:
        yield _event(reply.first())
        async with aclosing(generator.decode(reply.request, reply.prepared)) as pieces:
            async for piece in pieces:
                yield _event(reply.piece(piece))
                if piece.finish_reason and reply.request.stream_options and reply.request.stream_options.include_usage:
                    yield _event({**reply.head(True), "choices": [], "usage": reply.usage(piece)})
        yield "data: [DONE]\n\n"
    except OpenbookError as error:
        yield _event(error_body(error, error.http_status))
    except Exception as error:
        logger.exception("a stream failed")
        yield _event(error_body(OpenbookError(f"unexpected {type(error).__name__}: {error}"), 500))
    finally:
        release()


class Reply:
    """The JSON bodies of one reply."""

    def __init__(self, model: str, request: CompletionRequest | ChatRequest, prepared: Prepared) -> None:
        self.request, self.prepared, self._model = request, prepared, model
        self._chat = isinstance(request, ChatRequest)
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def head(self, streaming: bool) -> dict[str, Any]:
        kind = "text_completion" if not self._chat else "chat.completion.chunk" if streaming else "chat.completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def usage(self, last: Piece) -> dict[str, int]:
        prompt = len(self.prepared.prompt.ids)
        return {"prompt_tokens": prompt, "completion_tokens": last.tokens, "total_tokens": prompt + last.tokens}

    def whole(self, text: str, last: Piece) -> dict[str, Any]:
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": last.finish_reason}
        body = {**self.head(False), "choices": [choice], "usage": self.usage(last)}
        return {**body, "retrieval": self.prepared.retrieval}

    def first(self) -> dict[str, Any]:
        """The first event, sent before any token: what was retrieved."""
        said: dict[str, Any] = {"delta": {"role": "assistant", "content": ""}} if self._chat else {"text": ""}
        choice = {"index": 0, **said, "finish_reason": None}
        return {**self.head(True), "choices": [choice], "retrieval": self.prepared.retrieval}

    def piece(self, piece: Piece) -> dict[str, Any]:
        said: dict[str, Any] = {"text": piece.text}
        if self._chat:
            said = {"delta": {"content": piece.text} if piece.text else {}}
        body = {**self.head(True), "choices": [{"index": 0, **said, "finish_reason": piece.finish_reason}]}
        if piece.finish_reason and self.prepared.retrieval["neighbors"]:
            body["retrieval"] = {"neighbors": self.prepared.retrieval["neighbors"]}
        return body


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _nothing() -> None:
    return None
