"""Settings of the embedder service."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from openbook_core.config import FrozenConfig
from openbook_core.errors import ConfigError
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
    reflection: bool = Field(default=True, description="tell callers by gRPC's reflection which services there are")
    max_texts: int = Field(default=1024, ge=1, description="most texts in one call")
    max_calls: int = Field(default=128, ge=1, le=4096, description="most calls and streams at one time")
    batch_tokens: int | None = Field(
        default=None, ge=1, description="most padded tokens in one batch; by default 4096, on a GPU 16384"
    )
    max_queue_tokens: int = Field(
        default=262_144, ge=1, description="most tokens that wait, of calls and of streams each; more calls are refused"
    )
    encoder_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="seconds after which a batch that has not come back turns readiness off, or 4 times what its tokens take "
        "at the best measured rate, if that is longer; on a GPU the process ends",
    )
    restart_after_s: float = Field(
        default=30.0,
        gt=0,
        description="on a GPU: seconds of an encoder that fails on everything, after which the process ends",
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
        if self.batch_tokens is not None:
            self._require_room(self.batch_tokens)
        return self

    def with_batch_tokens(self, default: int, longest: int) -> Self:
        """These settings with batch_tokens where it is left open: `default`, or less where the queue holds no more.

        Raises ConfigError where one text of `longest` tokens is larger, or the queue is smaller than one batch.
        """
        batch_tokens = self.batch_tokens or max(longest, min(default, self.max_queue_tokens))
        if batch_tokens < longest:
            raise ConfigError(
                f"batch_tokens: {batch_tokens} is less than one text of {longest} tokens, which {self.model} reads; "
                f"give at least {longest}",
                field="batch_tokens",
            )
        try:
            self._require_room(batch_tokens)
        except ValueError as error:
            raise ConfigError(str(error), field="max_queue_tokens") from None
        return self.model_copy(update={"batch_tokens": batch_tokens})

    def _require_room(self, batch_tokens: int) -> None:
        if self.max_queue_tokens < batch_tokens:
            raise ValueError(
                f"max_queue_tokens ({self.max_queue_tokens}) must be at least batch_tokens ({batch_tokens}), "
                "or a full batch would never be admitted"
            )
