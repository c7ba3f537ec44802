"""The typed configuration of a RETRO model: every choice that changes what the network computes.

Layers are counted from 1, as in the papers. Impossible combinations are refused with the field at fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from openbook_core.config import FrozenConfig, read_yaml
from openbook_core.errors import ArgumentError

Norm = Literal["layernorm", "layernorm1p", "rmsnorm"]
Mlp = Literal["gelu", "gelu_tanh", "swiglu"]


def default_cross_attention_layers(num_layers: int) -> tuple[int, ...]:
    """NVIDIA's rule: from layer 6 if there are at most 15 layers, else from 9, then every third."""
    return tuple(range(6 if num_layers <= 15 else 9, num_layers + 1, 3))


def _head_dim(data: dict[str, Any]) -> int:
    return max(1, int(data["hidden_size"] // data["num_heads"]))


def _check_head_dim(config: EncoderConfig | RetroConfig) -> None:
    if "head_dim" not in config.model_fields_set and config.hidden_size % config.num_heads:
        raise ValueError(
            f"hidden_size: {config.hidden_size} is not a multiple of num_heads {config.num_heads}; change one or set "
            "head_dim"
        )


_SIZES = Path(__file__).parent / "sizes"


def size_names() -> tuple[str, ...]:
    """The shipped sizes, smallest first: what `RetroConfig.parse({"size": NAME})` takes."""
    return ("tiny", "125m", "350m", "800m", "2b", "7.5b", "8b", "48b")


def read_size(name: str) -> dict[str, Any]:
    """The settings of a shipped size. Raises ArgumentError for another name."""
    if name not in size_names():
        raise ArgumentError(f"size: no size {name!r}; there are {', '.join(size_names())}", field="size")
    return read_yaml(_SIZES / f"{name}.yaml")


class RotaryScaling(FrozenConfig):
    """Llama 3.1's stretch of the rotary positions (`rope_type: llama3`), by wavelength in tokens.

    Above `original_positions / low_frequency_factor` a frequency is divided by `factor`, below `original_positions /
    high_frequency_factor` it stays, and in between it is blended.
    """

    factor: PositiveFloat
    low_frequency_factor: PositiveFloat
    high_frequency_factor: PositiveFloat
    original_positions: PositiveInt

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                f"rotary_scaling.low_frequency_factor: {self.low_frequency_factor} must be below the high one, "
                f"{self.high_frequency_factor}"
            )
        return self


class EncoderConfig(FrozenConfig):
    """The bidirectional neighbour encoder. Norm, norm bias, epsilon and MLP are those of the decoder.

    `positions`: "shared" adds the decoder's learned table (NVIDIA's GPT-2 style), "learned" one of its own.
    `conditioned`: the layers in `cross_attention_layers` attend to the decoder's states of the asking chunk; only an
    unconditioned encoder gives encodings that can be cached across requests.
    `cross_attention_residual`: what that attention is added to: the "normalised" value (Megatron core) or the
    "residual" stream (Megatron legacy, and the usual pre-norm rule).
    `convolution`: before its self attention each block adds a depthwise convolution over so many tokens, itself and those
    before it (0: none). What stands beside what is then there from the first step, and need not be found by attention.
    """

    hidden_size: PositiveInt
    num_heads: PositiveInt
    num_layers: PositiveInt = 2
    head_dim: PositiveInt = Field(default_factory=_head_dim)
    ffn_hidden_size: PositiveInt = Field(default_factory=lambda data: 4 * data["hidden_size"])
    positions: Literal["none", "shared", "learned", "rotary"] = "rotary"
    bias: bool = False
    conditioned: bool = False
    cross_attention_layers: tuple[PositiveInt, ...] = Field(
        default_factory=lambda data: (1,) if data["conditioned"] else ()
    )
    cross_attention_residual: Literal["normalised", "residual"] = "residual"
    convolution: NonNegativeInt = 0
    final_norm: bool = True

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_head_dim(self)
        if self.conditioned != bool(self.cross_attention_layers):
            raise ValueError(
                f"encoder.cross_attention_layers: {self.cross_attention_layers} does not go with "
                f"conditioned={self.conditioned}; a conditioned encoder names at least one layer, another one none"
            )
        if any(layer > self.num_layers for layer in self.cross_attention_layers):
            raise ValueError(
                f"encoder.cross_attention_layers: {self.cross_attention_layers} goes beyond the last of "
                f"{self.num_layers} layers"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"encoder.head_dim: rotary positions need an even size, given {self.head_dim}")
        return self


class RetroConfig(FrozenConfig):
    """A decoder with chunked cross attention, and its neighbour encoder.

    `cross_attention_layers=()` is a plain decoder. `gate` multiplies each chunked cross attention: a constant, or
    "learned", a scalar per layer that starts at 0 so that the model starts as the decoder it was made from.
    `neighbor_padding="attended"` attends to all R tokens of every present neighbour, as NVIDIA's models do.
    `qk_norm` is a norm over each head of the self attention's queries and keys (Qwen 3). A key `size` starts from a
    shipped size (`size_names`), whose settings the other keys replace.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt = Field(default_factory=lambda data: data["num_heads"])
    head_dim: PositiveInt = Field(default_factory=_head_dim)
    ffn_hidden_size: PositiveInt = Field(default_factory=lambda data: 4 * data["hidden_size"])
    max_positions: PositiveInt = 2048
    norm: Norm = "layernorm"
    norm_epsilon: PositiveFloat = 1e-5
    norm_bias: bool = False
    positions: Literal["learned", "rotary"] = "rotary"
    rotary_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    rotary_base: PositiveFloat = 10000.0
    rotary_scaling: RotaryScaling | None = None
    qk_norm: bool = False
    mlp: Mlp = "swiglu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    cross_attention_bias: bool = False
    tied_embeddings: bool = True
    chunk_length: PositiveInt = 64
    neighbor_length: PositiveInt = Field(default_factory=lambda data: 2 * data["chunk_length"])
    num_neighbors: PositiveInt = 2
    neighbor_padding: Literal["masked", "attended"] = "masked"
    cross_attention_layers: tuple[PositiveInt, ...] = Field(
        default_factory=lambda data: default_cross_attention_layers(data["num_layers"])
    )
    gate: float | Literal["learned"] = 1.0
    encoder: EncoderConfig = Field(
        default_factory=lambda data: EncoderConfig(
            hidden_size=data["hidden_size"],
            num_heads=data["num_heads"],
            head_dim=data["head_dim"],
            positions="learned" if data["head_dim"] % 2 else "rotary",
        )
    )

    @model_validator(mode="before")
    @classmethod
    def _start_from_size(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "size" not in data:
            return data
        settings = {**read_size(data["size"]), **data}
        del settings["size"]
        if isinstance(data.get("encoder"), Mapping):
            settings["encoder"] = {**read_size(data["size"]).get("encoder", {}), **data["encoder"]}
        return settings

    @property
    def rotary_dim(self) -> int:
        """How many channels of a head the rotary positions turn."""
        return int(self.head_dim * self.rotary_fraction)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_head_dim(self)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads: {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.positions == "rotary" and self.rotary_dim % 2:
            raise ValueError(
                f"rotary_fraction: {self.rotary_fraction} of head_dim {self.head_dim} is {self.rotary_dim} channels; "
                "rotary positions need an even number"
            )
        if self.chunk_length > self.max_positions:
            raise ValueError(f"chunk_length: {self.chunk_length} is longer than max_positions {self.max_positions}")
        layers = self.cross_attention_layers
        if list(layers) != sorted(set(layers)):
            raise ValueError(f"cross_attention_layers: must rise without repeats, given {layers}")
        if layers and layers[-1] > self.num_layers:
            raise ValueError(f"cross_attention_layers: {layers[-1]} is beyond the last of {self.num_layers} layers")
        if self.encoder.positions == "shared" and self.positions != "learned":
            raise ValueError('encoder.positions: "shared" needs a decoder with learned positions')
        if self.encoder.positions == "shared" and self.neighbor_length > self.max_positions:
            raise ValueError(
                f"neighbor_length: {self.neighbor_length} is longer than the shared table of {self.max_positions}"
            )
        if self.encoder.positions == "shared" and self.encoder.hidden_size != self.hidden_size:
            raise ValueError('encoder.hidden_size: "shared" positions need the decoder\'s width')
        return self
