"""What a run starts from when it is not from scratch: a finished decoder, whose settings become those of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from openbook_core.config import FrozenConfig
from openbook_core.errors import OpenbookError

if TYPE_CHECKING:
    from openbook_model import RetroConfig

# The settings of the parts that a retrofit adds; all others are the decoder's.
_ADDED = (
    "chunk_length",
    "neighbor_length",
    "num_neighbors",
    "neighbor_padding",
    "cross_attention_layers",
    "cross_attention_bias",
    "gate",
    "encoder",
)


class InitialConfig(FrozenConfig):
    """The decoder of `from` (any name or folder that `openbook_model.resolve` takes), with new RETRO parts.

    `model` then names only what is added: layers, encoder, neighbours; what it leaves out is as the base was converted.
    `gate: learned` (the default) starts the gates at 0, a constant gate the output projections. `corpus.tokenizer`
    is the base's. `base_learning_rate`: None freezes the base, else it is its rate at the schedule's peak, where that
    of the new parts is `optimiser.learning_rate`.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    base: str = Field(alias="from", min_length=1)
    base_learning_rate: PositiveFloat | None = None


def with_base(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a run, those of its model and tokenizer completed from its base where it has one.

    Raises ValueError for a decoder other than the base's or a base that reads neighbours, and what finding the base
    raises.
    """
    init = _mapping(run.get("init"))
    if not isinstance(init.get("from"), str) or not init["from"]:
        return run  # from scratch, or its own check says what is wrong
    from openbook_model.checkpoint import read_config
    from openbook_model.resolve import resolve_folder

    try:
        base = read_config(resolve_folder(init["from"]))
    except OpenbookError as error:
        raise type(error)(f"init.from: {error.message}", field="init.from") from error
    if base.cross_attention_layers and base.gate not in ("learned", 0.0):
        raise ValueError(reads_neighbors(init["from"]))
    corpus = run.get("corpus")
    if isinstance(corpus, Mapping):
        corpus = {"tokenizer": init["from"], **corpus}
    return {**run, "model": _completed(base, _mapping(run.get("model")), init["from"]), "corpus": corpus}


def reads_neighbors(base: str) -> str:
    """What is wrong with a base whose cross attention is on."""
    return (
        f"init.from: {base} reads neighbours already; a retrofit starts from a plain decoder, or from a converted one "
        "whose gates are still 0"
    )


def _completed(base: RetroConfig, given: Mapping[str, Any], name: str) -> dict[str, Any]:
    from openbook_model.convert.huggingface import RetrofitOptions, retro_settings

    known = base.model_dump(mode="json")
    for field, value in given.items():
        if field == "size" or (field in known and field not in _ADDED and value != known[field]):
            raise ValueError(
                f"model.{field}: {value!r} is given and the decoder is that of {name}, {known.get(field, 'as it is')!r}; "
                "leave it out"
            )
    options = RetrofitOptions(chunk_length=base.chunk_length)
    settings = {**known, "gate": "learned"}
    if not base.cross_attention_layers:
        defaults = retro_settings(base.num_layers, options)
        settings |= {field: defaults[field] for field in ("cross_attention_layers", "encoder")}
    if "chunk_length" in given:
        del settings["neighbor_length"]
    if "encoder" in given:
        settings["encoder"] = {
            "hidden_size": options.encoder_width,
            "num_heads": options.encoder_heads,
            **_mapping(given["encoder"]),
        }
    return {**settings, **{field: value for field, value in given.items() if field != "encoder"}}


def _mapping(value: Any) -> Mapping[str, Any]:
    """As a mapping of settings; anything else has none, and its own check says what is wrong."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value if isinstance(value, Mapping) else {}
