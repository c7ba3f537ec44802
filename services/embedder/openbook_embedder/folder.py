"""What a model folder and the options together say about an encoder, beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from openbook_core.errors import ConfigError, InputError
from openbook_embedder.architecture import Architecture
from openbook_embedder.config import EncoderOptions, Pooling
from openbook_embedder.files import read_object, token_limit
from openbook_embedder.sentence_files import SentenceFiles


@dataclass(frozen=True)
class EncoderFolder:
    """`path` holds weights and tokenizer; `max_tokens` counts special tokens; `prompts` by role."""

    path: Path
    architecture: Architecture
    pooling: Pooling
    normalize: bool
    prompts: dict[str, str]
    max_tokens: int
    lower_case: bool
    cut_side: str

    @classmethod
    def read(cls, folder: Path, options: EncoderOptions) -> EncoderFolder:
        """Raises InputError for a folder that is not a served encoder's, ConfigError for options against it."""
        if not folder.is_dir():
            raise InputError(
                f"{folder} is not a folder; an embedder is a folder with config.json, tokenizer.json and "
                "model.safetensors",
                field="model",
            )
        files = SentenceFiles.read(folder)
        architecture = Architecture.read(files.network)
        if files.dimension not in (None, architecture.dimension):
            raise InputError(
                f"{folder} pools vectors of {files.dimension} elements, its network makes {architecture.dimension}",
                field="model",
            )
        if not (files.network / "tokenizer.json").is_file():
            raise InputError(
                f"{files.network} holds no tokenizer.json; where the model has another tokenizer file, "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers writes it",
                field="tokenizer",
            )
        tokenizer = read_object(files.network / "tokenizer_config.json")
        cut_side = tokenizer.get("truncation_side", "right")
        if cut_side not in ("left", "right"):
            raise InputError(
                f"{files.network}: truncation_side is {cut_side!r}; left or right is known", field="tokenizer"
            )
        prompts = {"query": options.query_prompt, "passage": options.passage_prompt}
        return cls(
            path=files.network,
            architecture=architecture,
            pooling=_pooling(folder, files.pooling, options.pooling),
            normalize=next(given for given in (options.normalize, files.normalize, True) if given is not None),
            prompts={role: files.prompts[role] if given is None else given for role, given in prompts.items()},
            max_tokens=_max_tokens(
                architecture.positions,
                files.max_tokens or token_limit(tokenizer, "model_max_length", files.network),
                options.max_tokens,
            ),
            lower_case=files.lower_case,
            cut_side=cut_side,
        )


def _pooling(folder: Path, stated: Pooling | None, wanted: Pooling | None) -> Pooling:
    chosen = stated or wanted
    if chosen is None:
        raise ConfigError(
            f"{folder} has no modules.json, so nothing says how its token vectors become one; give pooling: mean "
            "(BERT as in RETRO), cls or last",
            field="pooling",
        )
    if wanted not in (None, chosen):
        raise ConfigError(
            f"pooling: given {wanted!r}, and {folder} says {stated!r}; leave the option out, the model was trained so",
            field="pooling",
        )
    return chosen


def _max_tokens(positions: int, stated: int | None, wanted: int | None) -> int:
    if wanted is not None and wanted > positions:
        raise ConfigError(f"max_tokens: given {wanted}, the network has {positions} positions", field="max_tokens")
    return wanted or min(stated or positions, positions)
