"""Formats by name."""

from __future__ import annotations

from collections.abc import Callable

from openbook_core.errors import InputError
from openbook_database.sources.base import FieldNames, Format, Rows, Source
from openbook_database.sources.huggingface import SPLITS, STATE, HuggingFaceDataset
from openbook_database.sources.jsonl import JsonLines
from openbook_database.sources.megatron import MegatronDataset
from openbook_database.sources.parquet import ParquetFile
from openbook_database.sources.text import SUFFIXES, TextFiles

FORMATS: dict[Format, Callable[[Source, FieldNames], Rows]] = {
    "jsonl": JsonLines,
    "text": TextFiles,
    "parquet": ParquetFile,
    "huggingface": HuggingFaceDataset,
    "megatron": MegatronDataset,
}


def format_of(source: Source) -> Format:
    """The format that is given, or else told by the name: a folder is a Hugging Face dataset where it has that one's
    state.json or dataset_dict.json, otherwise text; .parquet, .bin and .idx and .txt and .md speak for themselves, a name
    beside which there is NAME.idx is a Megatron dataset, and any other file is JSON Lines."""
    path, suffix = source.path, source.path.suffix.lower()
    if source.format is not None:
        return source.format
    if path.is_dir():
        return "huggingface" if any((path / name).exists() for name in (STATE, SPLITS)) else "text"
    if suffix == ".parquet":
        return "parquet"
    if suffix in (".bin", ".idx") or (not path.exists() and path.with_name(path.name + ".idx").exists()):
        return "megatron"
    return "text" if suffix in SUFFIXES else "jsonl"


def open_rows(source: Source, fields: FieldNames) -> Rows:
    """The reader of `source`; its own field names go before `fields`, but all kept columns are those of `fields`."""
    name = format_of(source)
    for option, belongs in (("split", "huggingface"), ("tokenizer", "megatron")):
        if getattr(source, option) is not None and name != belongs:
            raise InputError(f"{source.path} is of format {name}, which has no {option}", field="input")
    if source.fields is not None:
        fields = source.fields.model_copy(update={"metadata": fields.metadata})
    return FORMATS[name](source, fields)
