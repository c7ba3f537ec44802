"""Import of NVIDIA's released Retro checkpoints: `release/mp_rank_RR/model_optim_rng.pt`, one file per tensor-parallel rank.

The files are pickles. They are read by torch's restricted unpickler, which runs no code of theirs: NVIDIA's classes
become inert records, and any other class or function is refused by name before a byte is unpickled.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openbook_core.errors import ArgumentError, CorruptError, InputError, NotFoundError
from openbook_model.config import RetroConfig
from openbook_model.convert.huggingface import RetrofitOptions, retro_parts, retro_settings
from openbook_model.convert.megatron import Regrouped, decoder_settings, megatron_config, sort_names
from openbook_model.convert.report import ConversionReport, common_dtype, fill
from openbook_model.finite import is_finite
from openbook_model.model import RetroModel

_FILE = "model_optim_rng.pt"
# Settings, enumerations, random states and empty layer states of a training job: read as records of what they hold.
_INERT = re.compile(r"argparse\.Namespace|megatron\..+|numpy\..+|_codecs\.encode|_io\.BytesIO|pathlib\.\w+")
_ROWS = ("word_embeddings", "output_layer", "query_key_value", "query", "key_value", "dense_h_to_4h")
_COLUMNS = ("dense", "dense_4h_to_h")
_SHAPE = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size")
_COPIES_MAY_DIFFER = 0.01


class _Record:
    """Stands in for a class of the file; keeps what it is given."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def convert_legacy(
    source: Path,
    options: RetrofitOptions | None = None,
    *,
    dtype: torch.dtype | None = torch.float32,
    allow_unexpected: bool = False,
) -> tuple[RetroModel, ConversionReport]:
    """The model of a checkpoint folder, and the account of its tensors. A `dtype` of None is the files' own.

    The files do not say the chunk length; `options` do. The rest of them is for a GPT without Retro, which gets new
    RETRO parts. Raises ArgumentError, NotFoundError, CorruptError or InputError naming the file, setting or tensor.
    """
    options = options or RetrofitOptions()
    ranks = _read_ranks(source)
    args, tensors = ranks[0]
    settings = _settings(args, tensors, options.chunk_length)
    has_retro = bool(settings["cross_attention_layers_1based"])
    if has_retro:
        other = options.model_fields_set - {"chunk_length"}
        if other:
            raise ArgumentError(f"{', '.join(sorted(other))}: {source} has its own RETRO parts", field=min(other))
        config = theirs = megatron_config(settings)
    else:
        decoder = decoder_settings(settings)
        config = RetroConfig.parse({**decoder, **retro_settings(decoder["num_layers"], options)}, source=str(source))
        theirs = config.model_copy(update={"cross_attention_layers": ()})
    joined = _Joined([tensors for _, tensors in ranks], swiglu=config.mlp == "swiglu")
    names, unexpected, ignored = sort_names(tensors, theirs)
    weights = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    model = RetroModel.allocate(config, dtype or common_dtype(weights))
    report = fill(
        model,
        Regrouped(names, joined.read, config),
        unexpected=unexpected,
        ignored=ignored,
        may_be_new=frozenset() if has_retro else retro_parts(model),
        allow_unexpected=allow_unexpected,
        seed=options.seed,
        notes=joined.notes,
    )
    return model.eval(), report


class _Joined:
    """Whole tensors out of the ranks' parts (the rules are in tests/golden/README.md)."""

    def __init__(self, parts: list[dict[str, Any]], *, swiglu: bool) -> None:
        self._parts, self._swiglu = parts, swiglu
        self.notes: list[str] = []

    def read(self, name: str) -> Tensor:
        parts = [part[name] for part in self._parts]
        for value in parts:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise InputError(f"{name} is not a tensor of floating-point numbers", field="source")
        if len({value.shape for value in parts}) > 1:
            shapes = [list(value.shape) for value in parts]
            raise InputError(f"{name} has shapes {shapes} on the ranks; they must be equal", field="source")
        stem, _, kind = name.rpartition(".")
        part = stem.rpartition(".")[2]
        if part == "dense_h_to_4h" and self._swiglu:
            return torch.cat([torch.cat(halves) for halves in zip(*(value.chunk(2) for value in parts), strict=True)])
        if part in _ROWS:
            return torch.cat(parts)
        if part in _COLUMNS and kind == "weight":
            return torch.cat(parts, dim=1)
        return self._copy(name, parts)

    def _copy(self, name: str, parts: list[Tensor]) -> Tensor:
        """Every rank has the same; where training let them drift apart a little, the first rank's is taken."""
        if not all(is_finite(value) for value in parts):
            raise InputError(f"{name} holds NaN or infinite values", field="source")
        first = parts[0].float()
        difference = max(float((value.float() - first).abs().max()) for value in parts)
        if difference > _COPIES_MAY_DIFFER * float(first.abs().max()):
            raise InputError(
                f"{name} should be the same on all ranks and differs by up to {difference:.3g}; the files are not of "
                "one checkpoint",
                field="source",
            )
        if difference:
            self.notes.append(f"{name} differs between ranks by up to {difference:.3g}; rank 0's was taken")
        return parts[0]


def _settings(args: Mapping[str, Any], tensors: Mapping[str, Any], chunk_length: int) -> dict[str, Any]:
    """The job's options under the names of `megatron_config`; options that later versions added have their defaults."""
    for name, supported in _ONLY.items():
        if args.get(name, supported[0]) not in supported:
            raise InputError(f"{name} {args[name]!r} is not supported, only {supported[0]!r}", field=name)
    positions = args.get("position_embedding_type", "learned_absolute")
    if args.get("use_rotary_position_embeddings"):
        positions = "rope"
    if positions not in ("rope", "learned_absolute"):
        raise InputError(f"position_embedding_type {positions!r} is not supported", field="position_embedding_type")
    tanh = args.get("openai_gelu") or args.get("bias_gelu_fusion")
    zero_centred = bool(args.get("apply_layernorm_1p"))
    heads = _arg(args, "num_attention_heads")
    settings = {
        **{name: _arg(args, name) for name in (*_SHAPE, "max_position_embeddings", "padded_vocab_size")},
        "head_dim": args.get("kv_channels") or _arg(args, "hidden_size") // heads,
        "position_embedding": positions,
        "rotary_percent": args.get("rotary_percent", 1.0),
        "rotary_base": args.get("rotary_base", 10000),
        "activation": "swiglu" if args.get("swiglu") else "gelu_tanh" if tanh else "gelu",
        "add_bias_linear": args.get("add_bias_linear", True),
        "tied_embeddings": not args.get("untie_embeddings_and_output_weights", False),
        "layernorm_zero_centered_gamma": zero_centred,
        "layernorm_epsilon": args.get("norm_epsilon") or _arg(args, "layernorm_epsilon"),
        "chunk_length": chunk_length,
        "retrieved_length": chunk_length * args.get("retro_num_retrieved_chunks", 2),
        "num_neighbors": args.get("retro_num_neighbors", 2),
        "encoder_num_layers": args.get("retro_encoder_layers", 2),
        "encoder_cross_attention_residual": "un-normalised",
        "retro_attention_gate": args.get("retro_attention_gate", 1.0),
        "cross_attention_layers_1based": _layers(r"layers\.(\d+)\.inter_attention\.query\.weight", tensors),
        "encoder_cross_attention_layers_1based": _layers(
            r"layers\.\d+\.retriever\.layers\.(\d+)\.inter_attention\.query\.weight", tensors
        ),
    }
    if args.get("normalization", "LayerNorm") == "RMSNorm":
        settings["norm"] = "rmsnorm"
    return settings


# Options under which the network would be another one: the supported values, the first is the default.
_ONLY: dict[str, tuple[Any, ...]] = {
    "normalization": ("LayerNorm", "RMSNorm"),
    "pipeline_model_parallel_size": (1,),
    "group_query_attention": (False,),
    "num_experts": (None, 0),
    "squared_relu": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "rotary_seq_len_interpolation_factor": (None, 1, 1.0),
    "add_position_embedding": (True,),
}


def _layers(pattern: str, names: Mapping[str, Any]) -> list[int]:
    """Counted from 1, of the decoder or of the encoder as the pattern says."""
    found = (re.fullmatch(rf"language_model\.encoder\.{pattern}", name) for name in names)
    return sorted(int(match[1]) + 1 for match in found if match)


def _arg(args: Mapping[str, Any], name: str) -> Any:
    if args.get(name) is None:
        raise InputError(f"the checkpoint's args have no {name!r}", field=name)
    return args[name]


def _read_ranks(source: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The options and the flat tensors of every rank."""
    folder = _ranks_folder(source)
    numbers = _rank_numbers(folder)
    ranks, iterations = [], []
    for number in numbers:
        path = folder / f"mp_rank_{number:02d}" / _FILE
        content = _read_file(path)
        args, model = getattr(content.get("args"), "state", None), content.get("model")
        if not isinstance(args, dict) or not isinstance(model, dict):
            raise InputError(f"{path} is no Megatron model: it holds no 'args' and 'model'", field="source")
        version = content.get("checkpoint_version", 0)
        if not isinstance(version, int | float) or version < 2.0:
            raise InputError(f"{path} has checkpoint version {version!r}; 2.0 and 3.0 are read", field="source")
        ranks.append((args, _flat(model)))
        iterations.append(content.get("iteration"))
    _check_one_checkpoint(folder, ranks, iterations)
    return ranks


def _check_one_checkpoint(
    folder: Path, ranks: list[tuple[dict[str, Any], dict[str, Any]]], iterations: list[Any]
) -> None:
    """Raises InputError where the ranks are not all of one checkpoint's."""
    (first_args, first), size = ranks[0], len(ranks)
    asked = int(first_args.get("tensor_model_parallel_size", size))
    if asked != size:
        missing = ", ".join(f"mp_rank_{number:02d}" for number in range(size, asked))
        raise InputError(
            f"{folder} holds {size} ranks of a checkpoint of {asked}" + (f"; missing: {missing}" if missing else ""),
            field="source",
        )
    if len(set(map(str, iterations))) > 1:
        raise InputError(f"{folder}: the ranks are of different iterations: {iterations}", field="iteration")
    for number, (args, tensors) in enumerate(ranks):
        for name in (*_SHAPE, "tensor_model_parallel_size"):
            if args.get(name) != first_args.get(name):
                raise InputError(
                    f"{folder}: {name} is {first_args.get(name)!r} on rank 0 and {args.get(name)!r} on rank {number}",
                    field=name,
                )
        odd = sorted(tensors.keys() ^ first.keys())
        if odd:
            raise InputError(f"{folder}: {odd[0]} is not on both of the ranks 0 and {number}", field="source")


def _ranks_folder(source: Path) -> Path:
    if not source.is_dir():
        raise NotFoundError(f"no checkpoint folder at {source}", field="source")
    tracker = source / "latest_checkpointed_iteration.txt"
    if not tracker.is_file():
        return source / "release" if (source / "release").is_dir() else source
    text = tracker.read_text(encoding="utf-8").strip()
    if text != "release" and not text.isdecimal():
        raise CorruptError(f"{tracker} must hold 'release' or a number, not {text[:40]!r}", field="source")
    folder = source / (text if text == "release" else f"iter_{int(text):07d}")
    if not folder.is_dir():
        raise NotFoundError(f"{tracker} names {folder.name}, which is not there", field="source")
    return folder


def _rank_numbers(folder: Path) -> list[int]:
    names = sorted(path.name for path in folder.iterdir() if path.name.startswith("mp_rank_"))
    pipeline = [name for name in names if re.fullmatch(r"mp_rank_\d+_\d+", name)]
    if pipeline:
        raise InputError(
            f"{folder} is cut for pipeline parallelism ({pipeline[0]}), which is not read; join it with Megatron first",
            field="source",
        )
    numbers = sorted(int(name.removeprefix("mp_rank_")) for name in names if re.fullmatch(r"mp_rank_\d\d", name))
    if not numbers:
        raise NotFoundError(f"{folder} holds no mp_rank_00/{_FILE}", field="source")
    missing = sorted(set(range(numbers[-1] + 1)) - set(numbers))
    if missing:
        raise NotFoundError(f"{folder} lacks {', '.join(f'mp_rank_{n:02d}' for n in missing)}", field="source")
    return numbers


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"no file {path}", field="source")
    if not zipfile.is_zipfile(path):
        raise CorruptError(f"{path} is truncated or no checkpoint of torch.save; fetch it again", field="source")
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        unknown = [name for name in named if not _INERT.fullmatch(name)]
        if unknown:
            raise InputError(
                f"{path} wants to run or make {', '.join(unknown)}, which no Megatron checkpoint needs; it was not read",
                field="source",
            )
        with torch.serialization.safe_globals([(_Record, name) for name in named]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except InputError:
        raise
    except Exception as error:  # an unpickler fails with anything on bytes that are not its own
        raise CorruptError(f"{path} cannot be read: {str(error).splitlines()[0]}", field="source") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no dictionary", field="source")
    return content


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
