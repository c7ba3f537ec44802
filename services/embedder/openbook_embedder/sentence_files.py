"""The files of sentence-transformers in a model folder: what follows the network, where texts are cut, the prompts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError
from openbook_embedder.config import Pooling
from openbook_embedder.files import read_json, read_object, token_limit

_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
# Older releases write one switch per mode.
_POOLING_SWITCHES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_LIMIT_FILES = tuple(f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "xlm-roberta"))
# Names under which models keep the prompt of a role.
_PROMPT_NAMES = {"query": ("query",), "passage": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class SentenceFiles:
    """`network` is the folder of weights and tokenizer; None stands for what the files do not say."""

    network: Path
    pooling: Pooling | None
    normalize: bool | None
    dimension: int | None
    prompts: dict[str, str]
    max_tokens: int | None
    lower_case: bool

    @classmethod
    def read(cls, folder: Path) -> SentenceFiles:
        """Raises InputError for files that contradict each other, or ask for what is not served."""
        network, normalize, pooling = folder, None, _PoolingFile(None, None, True)
        modules = read_json(folder / "modules.json")
        if modules is not None:
            paths = _module_paths(folder / "modules.json", modules)
            network, normalize = paths["Transformer"], "Normalize" in paths
            pooling = _PoolingFile.read(paths["Pooling"] / "config.json")
        prompts = _prompts(folder / "config_sentence_transformers.json")
        if any(prompts.values()) and not pooling.include_prompt:
            raise InputError(
                f"{folder} leaves the prompt's tokens out of the pooling (include_prompt is false), which is not served",
                field="model",
            )
        limits = next(filter(None, (read_object(network / name) for name in _LIMIT_FILES)), {})
        for name in ("query_expansion", "query_length", "document_length"):
            if limits.get(name) is not None:
                raise InputError(f"{network} asks for {name} ({limits[name]!r}), which is not served", field="model")
        return cls(
            network=network,
            pooling=pooling.mode,
            normalize=normalize,
            dimension=pooling.dimension,
            prompts=prompts,
            max_tokens=token_limit(limits, "max_seq_length", network),
            lower_case=bool(limits.get("do_lower_case")),
        )


def _module_paths(path: Path, modules: Any) -> dict[str, Path]:
    """Folder of each module by its kind, in order."""
    try:
        listed = [(str(module["type"]), str(module["path"])) for module in modules]
    except (TypeError, KeyError):
        raise InputError(f"{path} must hold a list of objects with 'type' and 'path'", field="model") from None
    kinds = [kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind for kind, _ in listed]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise InputError(
            f"{path} names the modules {', '.join(kinds) or '(none)'}; Transformer, Pooling and at most Normalize after "
            "them are served, in this order",
            field="model",
        )
    paths = {kind: (path.parent / place).resolve() for kind, (_, place) in zip(kinds, listed, strict=True)}
    for place in paths.values():
        if not place.is_relative_to(path.parent.resolve()):
            raise InputError(f"{path} names {place}, which is outside the model's folder", field="model")
    return paths


@dataclass(frozen=True)
class _PoolingFile:
    mode: Pooling | None
    dimension: int | None
    include_prompt: bool

    @classmethod
    def read(cls, path: Path) -> _PoolingFile:
        config = read_object(path)
        if not config:
            raise InputError(f"modules.json names a Pooling module, and there is no {path}", field="model")
        switched = [mode for key, mode in _POOLING_SWITCHES.items() if config.get(key)]
        named = config.get("pooling_mode", switched or ["mean"])
        modes = [named] if isinstance(named, str) else list(named)
        if len(modes) != 1 or modes[0] not in _POOLINGS:
            raise InputError(
                f"{path} pools by {' and '.join(map(str, modes))}; one of {', '.join(_POOLINGS)} is served",
                field="pooling",
            )
        if switched and switched != modes:
            raise InputError(
                f"{path} contradicts itself: pooling_mode is {modes[0]!r}, the switches say {' and '.join(switched)}",
                field="pooling",
            )
        return cls(
            mode=_POOLINGS[modes[0]],
            dimension=config.get("embedding_dimension", config.get("word_embedding_dimension")),
            include_prompt=config.get("include_prompt", True),
        )


def _prompts(path: Path) -> dict[str, str]:
    """Prompt of each role: its own, else the default prompt unless that is another role's, else none."""
    config = read_object(path)
    given: dict[str, str | None] = config.get("prompts") or {}
    if not isinstance(given, dict) or not all(isinstance(prompt, str | None) for prompt in given.values()):
        raise InputError(f"{path}: prompts must be an object of texts, given {given!r}", field="model")
    default: str | None = config.get("default_prompt_name")
    if default is not None and default not in given:
        raise InputError(
            f"{path}: the default prompt {default!r} is not among the prompts ({', '.join(given)})", field="model"
        )
    shared = "" if default is None or default in chain(*_PROMPT_NAMES.values()) else given[default] or ""
    prompts = {}
    for role, names in _PROMPT_NAMES.items():
        own = {name: prompt for name in names if (prompt := given.get(name))}
        if len(set(own.values())) > 1:
            raise InputError(
                f"{path} gives several prompts for a {role}: {own}; remove those that are not meant", field="model"
            )
        prompts[role] = next(iter(own.values()), shared)
    return prompts
