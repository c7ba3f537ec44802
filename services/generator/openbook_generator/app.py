"""Wiring and start of the generator."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import FrameType

from fastapi import FastAPI

from openbook_core.clients import RetrieverClient
from openbook_core.http import http_server, listen
from openbook_core.telemetry import setup_logging
from openbook_core.tracing import setup_traces
from openbook_generator.api import create_app
from openbook_generator.config import GeneratorConfig
from openbook_generator.models import load_model, with_stored_prompt
from openbook_generator.retrieval import Retriever
from openbook_generator.service import Generator


def serve(config: GeneratorConfig) -> None:
    """Serve on the main thread until SIGTERM or SIGINT; prints one JSON line with the address once it accepts requests.

    Raises UnavailableError with reason PORT_IN_USE, or what loading the model raises. The retriever may come later.
    """
    setup_logging("generator")
    setup_traces("generator", config.traces_endpoint)
    protection, dial = config.protection(config.host), config.dial()
    listener = listen(config.host, config.port)
    try:
        config = with_stored_prompt(config)
        model, tokenizer = load_model(config)
        client = RetrieverClient(config.retriever, dial)
        generator = Generator(config, model, tokenizer, Retriever(client, config.search_timeout_s))
        app = create_app(generator, protection.tokens)
        app.router.lifespan_context = _announce(f"{protection.scheme}://{config.host}:{listener.getsockname()[1]}")
        server = http_server(app, protection)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _shutdown_is_done)
        try:
            server.run(sockets=[listener])
        finally:
            generator.close()
    finally:
        listener.close()


def _shutdown_is_done(number: int, frame: FrameType | None) -> None:
    """uvicorn raises the signal that stopped it once more; by then nothing is left to do."""


def _announce(address: str) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        print(json.dumps({"service": "generator", "address": address}), flush=True)
        yield

    return lifespan
