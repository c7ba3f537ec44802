"""What LangChain's and LlamaIndex's clients send, recorded on the wire, and how it is answered.

The bodies are those of langchain-openai 1.7.3 and llama-index-embeddings-openai 0.7.0 over openai 3.57.0, whose installation
is too large for the tests. Each stands beside the call that made it.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openbook_core.weights import DEFAULT_EMBEDDER
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine

sys.path.insert(0, str(Path(__file__).parent))
from embedder_support import RunningEmbedder, running_embedder, write_tiny_encoder

QUESTION, PASSAGE, LONG = "What does Canada export?", "Land and water\nof the islands", "land " * 999
PASSAGES = "sentence-transformers/all-MiniLM-L6-v2-passage"
QUERIES = "sentence-transformers/all-MiniLM-L6-v2-query"
HEADERS = {
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "authorization": "Bearer none",
    "content-type": "application/json",
    "user-agent": "OpenAI/Python 3.57.0",
    "x-stainless-async": "async:asyncio",
    "x-stainless-retry-count": "0",
}
ANSWERED: dict[str, dict[str, Any]] = {
    # OpenAIEmbeddings(model=PASSAGES, base_url=..., api_key="none", check_embedding_ctx_length=False), called l below
    "l.embed_documents([QUESTION, PASSAGE]), and aembed_documents": {
        "model": PASSAGES,
        "input": [QUESTION, PASSAGE],
        "encoding_format": "base64",
    },
    "l.embed_query(QUESTION), and aembed_query": {
        "model": PASSAGES,
        "input": [QUESTION],
        "encoding_format": "base64",
    },
    'l.embed_query("x", model=QUERIES)': {"model": QUERIES, "input": ["x"], "encoding_format": "base64"},
    "with dimensions=384": {
        "model": PASSAGES,
        "input": [QUESTION, PASSAGE],
        "dimensions": 384,
        "encoding_format": "base64",
    },
    'with model_kwargs={"encoding_format": "float"}': {
        "model": PASSAGES,
        "input": [QUESTION, PASSAGE],
        "encoding_format": "float",
    },
    'with model_kwargs={"user": "someone", "extra_body": {"truncate": True}}': {
        "model": PASSAGES,
        "input": [LONG],
        "user": "someone",
        "encoding_format": "base64",
        "truncate": True,
    },
    # OpenAIEmbedding(model_name=PASSAGES, api_base=..., api_key="none"), called m below; it makes one line of each text
    "m.get_text_embedding(PASSAGE), and aget_text_embedding": {
        "model": PASSAGES,
        "input": ["Land and water of the islands"],
        "encoding_format": "base64",
    },
    "m.get_text_embedding_batch([QUESTION, PASSAGE]), and aget_text_embedding_batch": {
        "model": PASSAGES,
        "input": [QUESTION, "Land and water of the islands"],
        "encoding_format": "base64",
    },
    "m.get_query_embedding(QUESTION), and aget_query_embedding": {
        "model": PASSAGES,
        "input": [QUESTION],
        "encoding_format": "base64",
    },
}
REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    # Without check_embedding_ctx_length=False; recorded with a vocabulary of bytes, tiktoken's own comes over the internet.
    "l.embed_documents([QUESTION, PASSAGE]) in tiktoken's ids": (
        {
            "model": PASSAGES,
            "input": [list(QUESTION.encode()), list(PASSAGE.encode())],
            "encoding_format": "base64",
        },
        400,
        "tokenizer",
        "check_embedding_ctx_length=False",
    ),
    "l without a model; m without one sends it too": (
        {"model": "text-embedding-ada-002", "input": [QUESTION, PASSAGE], "encoding_format": "base64"},
        404,
        "model",
        f"served are .*{QUERIES}",
    ),
    "l with dimensions=100": (
        {"model": PASSAGES, "input": [QUESTION, PASSAGE], "dimensions": 100, "encoding_format": "base64"},
        400,
        "dimensions",
        "are not cut",
    ),
    "l.embed_documents([LONG])": (
        {"model": PASSAGES, "input": [LONG], "encoding_format": "base64"},
        400,
        "input[0]",
        "set truncate",
    ),
    'l.embed_documents(["a", ""])': (
        {"model": PASSAGES, "input": ["a", ""], "encoding_format": "base64"},
        400,
        "input[1]",
        "is empty",
    ),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmbedder]:
    threads = torch.get_num_threads()
    folder = write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")
    options = EncoderOptions(pooling="mean", query_prompt="ask: ", passage_prompt="")
    engine = EncoderEngine.load(folder, dtype="float32", threads=1, options=options)
    with running_embedder(engine, model=DEFAULT_EMBEDDER) as embedder:
        yield embedder
    torch.set_num_threads(threads)


def send(running: RunningEmbedder, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(f"{running.http}/v1/embeddings", json.dumps(body).encode(), HEADERS)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return bytes(reply.read())


@pytest.mark.parametrize("call", ANSWERED)
def test_recorded_requests_are_answered(running: RunningEmbedder, call: str) -> None:
    body = dict(ANSWERED[call])
    if "dimensions" in body:
        body["dimensions"] = 32  # the test's encoder is not MiniLM, only called so
    reply = json.loads(send(running, body))
    rows = [each["embedding"] for each in reply["data"]]
    if body["encoding_format"] == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    encode = running.engine.encode_queries if body["model"] == QUERIES else running.engine.encode
    assert np.abs(np.array(rows) - encode(body["input"])).max() <= 1e-5
    assert [(each["object"], each["index"]) for each in reply["data"]] == [
        ("embedding", place) for place in range(len(body["input"]))
    ]
    assert (reply["object"], reply["model"]) == ("list", body["model"])
    tokens = sum(each["tokens"] for each in reply["data"])
    assert reply["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


@pytest.mark.parametrize("call", REFUSED)
def test_recorded_requests_that_cannot_be_answered_say_what_to_do(running: RunningEmbedder, call: str) -> None:
    body, status, field, says = REFUSED[call]
    with pytest.raises(urllib.error.HTTPError) as refused:
        send(running, body)
    error = json.load(refused.value)["error"]
    assert (refused.value.code, error["param"]) == (status, field)
    assert error["type"] == "invalid_request_error"
    assert re.search(says, error["message"])
