"""Small deterministic parts for tests: a byte-level tokenizer, a hashing encoder, a snapshot built from both."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from openbook_core.fingerprint import Fingerprint
from openbook_core.tokenizer import Tokenizer
from openbook_database.build.run import BuildResult, build_snapshot
from openbook_database.build.settings import BuildSettings

END_TOKEN = "<|end|>"
_MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the"), ("e", "r"), ("a", "n"), ("an", "d"), ("Ġ", "and")]


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of 265 tokens: most characters that are not ASCII are several tokens; END_TOKEN is special."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(symbols + [left + right for left, right in _MERGES])}
    raw = RawTokenizer(models.BPE(vocab=vocabulary, merges=_MERGES))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(END_TOKEN, special=True, normalized=False)])
    return Tokenizer(raw, eos_token=END_TOKEN)


class HashEncoder:
    """A `query_encoder.QueryEncoder`: a bag of hashed words, normalised; equal texts get equal vectors in both roles."""

    max_tokens = 256
    dtype = "float32"

    def __init__(self, dimension: int = 16) -> None:
        self.dimension = dimension
        self.fingerprint = Fingerprint({"architecture": "hash", "dimension": dimension})
        self.arithmetic: dict[str, str | int] = {}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors_ND = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                code = zlib.crc32(word.encode())
                vectors_ND[row, code % self.dimension] += 1 if code & 1 << 20 else -1
            vectors_ND[row, 0] += 0.5
            vectors_ND[row] /= max(1e-6, float(np.linalg.norm(vectors_ND[row])))
        return vectors_ND

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.encode(texts)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A JSON Lines file of `rows`."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name there."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tiny_rows(documents: int, *, seed: int = 0, words: int = 120, edition: str = "") -> list[dict[str, Any]]:
    """Rows with id, title and text; several documents share sentences, so chunks have near and equal vectors."""
    random = np.random.default_rng(seed)
    vocabulary = [f"{syllable}{number}" for syllable in ("ka", "lo", "mé", "東", "the", "and ") for number in range(20)]
    rows = []
    for number in range(documents):
        chosen = random.integers(0, len(vocabulary), size=int(random.integers(3, words)))
        body = " ".join(vocabulary[word] for word in chosen)
        text = f"# Page {number}\n\nIt says {edition or 'nothing'}.\n## Facts\n{body}\n"
        rows.append({"id": f"doc/{number * 7919 % 1000:04d}-{number}", "title": f"Page {number}", "text": text})
    return rows


def build_tiny_snapshot(
    out: Path,
    *,
    database: str = "tiny",
    documents: int = 12,
    shards: int = 1,
    rows: Sequence[Mapping[str, Any]] | None = None,
    chunk_length: int = 16,
    dimension: int = 16,
    edition: str = "",
    base: Path | None = None,
    **settings: Any,
) -> BuildResult:
    """Build a snapshot from `rows`, or from `tiny_rows`; the input file lies beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    source = write_rows(
        out.with_name(out.name + ".jsonl"), tiny_rows(documents, edition=edition) if rows is None else rows
    )
    return build_snapshot(
        [source],
        out,
        database=database,
        tokenizer=tiny_tokenizer(),
        encoder=HashEncoder(dimension),
        base=base,
        settings=BuildSettings(chunk_length=chunk_length, shards=shards, embed_block=32, chunk_block=32, **settings),
    )
