"""The requests: OpenAI's fields that are supported, and `retrieval`. Anything else is refused by name."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from openbook_core.http import StrictBody

MAX_STOP, MAX_STOP_LENGTH = 4, 256


class RetrievalOptions(StrictBody):
    """What a request reads: None means the service's default; `snapshot` empty is the live one."""

    database: str | None = Field(default=None, min_length=1)
    k: int | None = Field(default=None, ge=0)
    enabled: bool = True
    snapshot: str = ""

    @property
    def names_source(self) -> bool:
        """Whether the client said where to read from, so that a wrong name is the client's mistake."""
        return self.database is not None or bool(self.snapshot)


class StreamOptions(StrictBody):
    include_usage: bool = False


class TextPart(StrictBody):
    type: Literal["text"]
    text: str


class ChatMessage(StrictBody):
    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class _Decoding(StrictBody):
    """Fields of both endpoints. `user` and `metadata` are accepted and not used."""

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    retrieval: RetrievalOptions = RetrievalOptions()

    @field_validator("presence_penalty", "frequency_penalty")
    @classmethod
    def _no_penalty(cls, value: float | None) -> float | None:
        if value:
            raise ValueError("penalties are not supported; leave it out or give 0")
        return value

    @field_validator("stop")
    @classmethod
    def _usable_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MAX_STOP or any(not 1 <= len(stop) <= MAX_STOP_LENGTH for stop in stops):
            raise ValueError(f"expected at most {MAX_STOP} strings of 1 to {MAX_STOP_LENGTH} characters")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def reply_limit(self) -> int | None:
        return self.max_tokens

    @property
    def reply_limit_field(self) -> str:
        return "max_tokens"


class CompletionRequest(_Decoding):
    """POST /v1/completions, for one prompt."""

    prompt: str = Field(min_length=1)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None

    @property
    def question(self) -> str:
        """What is searched for."""
        return self.prompt

    @property
    def question_field(self) -> str:
        return "prompt"


class ChatRequest(_Decoding):
    """POST /v1/chat/completions; the last message is the user's question."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if self.messages[-1].role != "user" or not self.messages[-1].text.strip():
            raise ValueError("messages: the last message must be the user's and not empty")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens: give it or max_completion_tokens, not both")
        return self

    @property
    def question(self) -> str:
        """What is searched for: the last message."""
        return self.messages[-1].text

    @property
    def question_field(self) -> str:
        return "messages"

    @property
    def reply_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def reply_limit_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
