"""Settings of the embedder service."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from openbook_core.config import FrozenConfig
from openbook_core.security.options import ServerOptions
from openbook_core.weights import DEFAULT_EMBEDDER

Dtype = Literal["auto", "float32", "bfloat16"]
Pooling = Literal["mean", "cls", "last"]
Backend = Literal["auto", "torch", "onnx", "openvino"]
Device = Literal["auto", "cpu", "cuda"]


class EncoderOptions(FrozenConfig):
    """What a model folder leaves open, or is wanted otherwise than it says; None takes the folder's word."""

    pooling: Pooling | None = Field(
        default=None, description="mean, cls or last; needed where the folder has no modules.json, refused against it"
    )
    normalize: bool | None = Field(
        default=None, description="vectors of length one; by default what modules.json says, and yes without it"
    )
    query_prompt: str | None = Field(default=None, description="text before each query")
    passage_prompt: str | None = Field(default=None, description="text before each passage")
    max_tokens: int | None = Field(default=None, ge=1, description="where a text is cut, special tokens included")


class EmbedderConfig(EncoderOptions, ServerOptions):
    """What `openbook serve embedder` takes. `batch_tokens` counts tokens with padding: texts times the longest."""

    host: str = "127.0.0.1"
    port: int = Field(default=7001, ge=0, le=65535, description="0 takes a free port")
    model: str = Field(default=DEFAULT_EMBEDDER, min_length=1, description="folder, or name of a model")
    dtype: Dtype = Field(default="auto", description="auto times bfloat16 against float32 at start")
    backend: Backend = Field(default="auto", description="what computes; auto takes what the folder holds")
    device: Device = Field(default="auto", description="of torch: cpu or cuda; auto takes a GPU where there is one")
    compile: bool | None = Field(default=None, description="torch.compile, and CUDA graphs; by default on a GPU only")
    threads: int | None = Field(default=None, ge=1, description="threads of the encoder; by default one per core")
    max_texts: int = Field(default=1024, ge=1, description="most texts in one call")
    max_calls: int = Field(default=128, ge=1, le=4096, description="most calls and streams at one time")
    batch_tokens: int = Field(default=4096, ge=1, description="most padded tokens in one batch")
    max_queue_tokens: int = Field(
        default=262_144, ge=1, description="most tokens that wait, of calls and of streams each; more calls are refused"
    )
    metrics_port: int | None = Field(default=None, ge=1, le=65535, description="Prometheus over HTTP; off by default")
    http_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="OpenAI's /v1/embeddings over HTTP; off by default, 0 takes a free port",
    )
    http_role: Literal["query", "passage"] | None = Field(
        default=None, description="role of HTTP requests that state none; by default they are refused"
    )

    cache: str | None = Field(
        default=None,
        repr=False,
        description="Redis for vectors of texts seen before, redis://HOST:PORT; off by default",
    )
    cache_ttl_s: float = Field(default=86_400.0, gt=0, description="seconds that a vector is kept in the cache")

    @model_validator(mode="after")
    def _one_batch_fits_the_queue(self) -> Self:
        if self.max_queue_tokens < self.batch_tokens:
            raise ValueError(
                f"max_queue_tokens ({self.max_queue_tokens}) must be at least batch_tokens ({self.batch_tokens}), "
                "or a full batch would never be admitted"
            )
        return self
