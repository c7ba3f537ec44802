"""The way back: a model folder of ours for transformers, as a decoder of its own families or as RETRO."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, get_args

from openbook_core.errors import ArgumentError, ConflictError, Reason
from openbook_model.checkpoint import TOKENIZER_FILES
from openbook_model.export.huggingface import write_decoder
from openbook_model.export.retro import write_retro
from openbook_model.folders import written_whole

Format = Literal["hf", "hf-retro"]


def export_model(kind: Format, source: Path, target: Path) -> str:
    """Write the model folder `source` for transformers at `target`, a new folder, with the tokenizer's files.

    "hf": the decoder alone, the network that OFF is, as a class of transformers whose name is returned.
    "hf-retro": all of it, for `trust_remote_code`; loading it needs this package installed.
    Raises InputError where transformers has no such decoder, ConflictError for a target that exists.
    """
    if kind not in get_args(Format):
        raise ArgumentError(f"unknown format {kind!r}; known: {', '.join(get_args(Format))}", field="to")
    if target.exists():
        raise ConflictError(f"{target} exists; choose a new folder", field="target", reason=Reason.ALREADY_EXISTS)
    with written_whole(target) as draft:
        if kind == "hf":
            name = write_decoder(source, draft)
        else:
            name = write_retro(source, draft)
        for file in TOKENIZER_FILES:
            if (source / file).is_file():
                shutil.copyfile(source / file, draft / file)
    return name
