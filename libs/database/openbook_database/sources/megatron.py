"""Megatron indexed datasets: NAME.idx (lengths, places, documents) and NAME.bin (token ids), format MMIDIDX version 1.

NAME.idx, little-endian: b"MMIDIDX\\0\\0"; uint64 version; uint8 code of the token type; uint64 sequences S; uint64
document borders D; int32 [S] lengths in tokens; int64 [S] places in NAME.bin in bytes; int64 [D] first sequence of each
document, and S as the last; with multimodal data int8 [S] modes, which are not read.
Source: megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.sources.base import BadLineError, FieldNames, Item, Source

DEFAULT_TOKENIZER = "openai-community/gpt2"
_MAGIC = b"MMIDIDX\x00\x00"
_OLD_MAGIC = b"TNTIDX\x00\x00"
_HEADER = struct.Struct("<QBQQ")
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_PAIRS = (
    ("vocab.json", "merges.txt"),
    ("gpt2-vocab.json", "gpt2-merges.txt"),
    ("encoder.json", "vocab.bpe"),
)


class MegatronDataset:
    """A row is a document: its sequences joined, without one end mark at its end, decoded. The id is NAME:NUMBER, from 0."""

    def __init__(self, source: Source, fields: FieldNames) -> None:
        self.fields, self.share = FieldNames(metadata=fields.metadata), 0.0
        self._tokenizer_name = source.tokenizer or DEFAULT_TOKENIZER
        prefix = source.path.with_suffix("") if source.path.suffix in (".bin", ".idx") else source.path
        self._bin, self._idx = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
        self._name = prefix.name

    def files(self) -> list[tuple[str, Path]]:
        return [(self._bin.name, self._bin), (self._idx.name, self._idx)]

    def rows(self, skip: int) -> Iterator[Item]:
        tokenizer = load_tokenizer(self._tokenizer_name)
        dtype, lengths, places, borders = self._read_index()
        data = _map(self._bin)

        def sequence(number: int) -> NDArray[Any]:
            size = int(lengths[number]) * dtype.itemsize
            found = bytes(data[int(places[number]) : int(places[number]) + size])
            if len(found) < size:
                raise InputError(
                    f"{self._bin} is cut short: {len(data)} bytes, but {self._idx.name} has tokens beyond",
                    field="input",
                )
            return np.frombuffer(found, dtype)

        if len(places):
            sequence(len(places) - 1)
        for document in range(skip, len(borders) - 1):
            parts = [sequence(number) for number in range(borders[document], borders[document + 1])]
            tokens = np.concatenate(parts) if parts else np.empty(0, dtype)
            name = f"{self._name}:{document}"
            try:
                row: dict[str, Any] | BadLineError = {"id": name, "text": self._text(tokens, tokenizer)}
            except BadLineError as error:
                row = error
            self.share = (document + 1) / (len(borders) - 1)
            yield Item(document + 1, f"{self._bin}, document {document}", row)

    def _text(self, tokens: NDArray[Any], tokenizer: Tokenizer) -> str:
        if len(tokens) and int(tokens[-1]) == tokenizer.eos_id:
            tokens = tokens[:-1]
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer.vocab_size:
            bad = int(tokens.max()) if tokens.min() >= 0 else int(tokens.min())
            raise BadLineError(
                "token beyond the tokenizer",
                f"holds token {bad}, the tokenizer {self._tokenizer_name} has 0 to {tokenizer.vocab_size - 1}: name the one "
                "that the data were made with (tokenizer of the source)",
            )
        return tokenizer.decode(tokens)

    def _read_index(self) -> tuple[np.dtype[Any], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """Token type, lengths int32 [S], places int64 [S] and document borders int64 [D]."""
        idx = self._idx
        data = _map(idx)
        start = len(_MAGIC) + _HEADER.size
        if bytes(data[: len(_OLD_MAGIC)]) == _OLD_MAGIC:
            raise InputError(f"{idx} has the old format TNTIDX: preprocess the data again with mmap", field="input")
        if bytes(data[: len(_MAGIC)]) != _MAGIC or len(data) < start:
            raise InputError(f"{idx} is damaged or no Megatron index: it does not begin with MMIDIDX", field="input")
        version, code, sequences, documents = _HEADER.unpack_from(data, len(_MAGIC))
        if version != 1 or code not in _TYPES:
            raise InputError(
                f"{idx} has version {version} and token type {code}, expected version 1 and one of the integer types "
                f"{', '.join(map(str, _TYPES))}",
                field="input",
            )
        if len(data) < start + 12 * sequences + 8 * documents:
            raise InputError(f"{idx} is cut short: {len(data)} bytes for {sequences} sequences", field="input")
        lengths = np.frombuffer(data, "<i4", sequences, start)
        places = np.frombuffer(data, "<i8", sequences, start + 4 * sequences)
        borders = np.frombuffer(data, "<i8", documents, start + 12 * sequences)
        rising = documents > 0 and borders[0] == 0 and borders[-1] == sequences and bool((np.diff(borders) >= 0).all())
        if not rising or (sequences and min(int(lengths.min()), int(places.min())) < 0):
            raise InputError(f"{idx} is damaged: its documents do not cover its sequences", field="input")
        return np.dtype(_TYPES[code]), lengths, places, borders


def _map(path: Path) -> memoryview:
    """The bytes of a file, mapped."""
    try:
        with path.open("rb") as stream:
            if not path.stat().st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise InputError(f"no such input file: {path}", field="input") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", field="input") from error


@lru_cache(maxsize=4)
def load_tokenizer(name: str) -> Tokenizer:
    """A tokenizer by folder or name; a folder may also hold the vocabulary and merges that Megatron is given."""
    folder = Path(name).expanduser()
    for vocabulary, merges in _PAIRS:
        if (folder / vocabulary).is_file() and (folder / merges).is_file() and not (folder / "tokenizer.json").exists():
            raw = RawTokenizer(models.BPE.from_file(str(folder / vocabulary), str(folder / merges)))
            raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            raw.decoder = decoders.ByteLevel()
            raw.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
            return Tokenizer(raw, eos_token="<|endoftext|>")
    return Tokenizer.load(name)
