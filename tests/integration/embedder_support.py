"""A tiny encoder of random weights behind gRPC and HTTP in this process: fast, and with limits that tests reach."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry
from transformers import BertConfig, BertModel

from openbook_core.http import listen
from openbook_core.rpc.channel import KEEPALIVE_S
from openbook_core.rpc.server import RunningServer, start_server
from openbook_core.security.options import Protection
from openbook_core.weights import DEFAULT_EMBEDDER, resolve_model
from openbook_embedder.batching import Batcher
from openbook_embedder.cache import open_cache
from openbook_embedder.config import EmbedderConfig
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.http import HttpServer, create_app
from openbook_embedder.intake import Intake
from openbook_embedder.metrics import EmbedderMetrics
from openbook_embedder.service import SERVICE_NAME, EmbedderService
from openbook_proto.v1 import embedder_pb2_grpc

MODEL = "tiny"


def write_tiny_encoder(folder: Path) -> Path:
    """Two layers of width 32 with the tokenizer of MiniLM."""
    source = resolve_model(DEFAULT_EMBEDDER)
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        shutil.copy(source / name, folder / name)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vocabulary = json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    BertModel(BertConfig(vocab_size=vocabulary, **size)).save_pretrained(folder)
    return folder


def write_modules(folder: Path) -> Path:
    """The files of sentence-transformers that name the pooling."""
    modules = (("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"))
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
                for name, path, kind in modules
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


@dataclass
class RunningEmbedder:
    """What a test can look at, and where it listens."""

    engine: EncoderEngine
    batcher: Batcher
    intake: Intake
    server: RunningServer
    address: str
    http: str
    registry: CollectorRegistry

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def running_embedder(
    engine: EncoderEngine,
    *,
    protection: Protection | None = None,
    keepalive_s: float = KEEPALIVE_S,
    **settings: object,
) -> Iterator[RunningEmbedder]:
    """`engine` served as `openbook serve embedder` does, with `settings`."""
    protection = protection or Protection()
    config = EmbedderConfig.parse({"model": MODEL, **settings}).with_batch_tokens(
        engine.batch_tokens, engine.max_tokens
    )
    assert config.batch_tokens is not None
    registry = CollectorRegistry()
    metrics = EmbedderMetrics(registry)
    # Looked up at every batch, so that a test can put another encoder in its place.
    batcher = Batcher(
        lambda ids: engine.encode_batch(ids),
        batch_tokens=config.batch_tokens,
        enough_tokens=engine.enough_tokens,
        cores=engine.cores,
        max_queue_tokens=config.max_queue_tokens,
        metrics=metrics,
        encode_alone=lambda ids: engine.encode_ids(ids),
        probe=engine.tokenize(["probe"]).ids[0],
        on_ready=lambda ready: server.set_ready(ready),
    )
    cache = open_cache(config, engine, metrics)
    intake = Intake(engine, batcher, config, metrics, cache)
    server = start_server(
        lambda each: embedder_pb2_grpc.add_EmbedderServicer_to_server(EmbedderService(intake), each),
        host="127.0.0.1",
        port=0,
        services=[SERVICE_NAME],
        max_workers=config.max_calls + 8,
        protection=protection,
        keepalive_s=keepalive_s,
    )
    server.set_ready(True)
    http = HttpServer(create_app(intake, protection.tokens), listen("127.0.0.1", 0), protection)
    try:
        yield RunningEmbedder(engine, batcher, intake, server, server.address, http.address, registry)
    finally:
        http.close()
        server.stop(0)
        batcher.close()
        if cache is not None:
            cache.close()
