"""Stage "embed": vectors of chunks in canonical order, one file of float32 for each block of chunks.

Chunks whose vectors the base has are passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.build.corpus import Corpus
from openbook_database.build.engine import Engine, Tell
from openbook_database.build.progress import Stage
from openbook_database.build.settings import BuildSettings
from openbook_database.build.workspace import Workspace, require_arithmetic
from openbook_database.chunking import PassageTemplate
from openbook_database.encoder import Encoder, encode_all
from openbook_database.files import clear_write_errors, map_array, write_bytes_atomically


def run_embed_stage(
    corpus: Corpus,
    tokenizer: Tokenizer,
    encoder: Encoder,
    settings: BuildSettings,
    work: Workspace,
    stage: Stage,
    engine: Engine,
) -> None:
    """Encode the blocks that are not there yet. A block's vectors follow from its passages alone."""
    blocks = range(-(-corpus.encoded_chunks // settings.embed_block))
    missing = [block for block in blocks if not _path(work, block).exists()]
    todo = sum(_length(corpus, settings, block) for block in missing)
    stage.advance(corpus.encoded_chunks - todo, reused=True)
    if engine.load_encoder is None:
        encoded = _encode_here(corpus, tokenizer, encoder, settings, work, missing)
    else:
        with clear_write_errors(work.tokenizer):
            tokenizer.save(work.tokenizer)
        job = EmbedJob(work, settings, dict(encoder.arithmetic), engine.load_encoder)
        item_bytes = 4 * encoder.dimension * settings.embed_block
        encoded = engine.map(job, missing, name="embed block", item_bytes=item_bytes)
    with closing(encoded):
        for block in encoded:
            stage.advance(_length(corpus, settings, block))


@dataclass(frozen=True)
class EmbedJob:
    """An `engine.Job`: the vectors of a block, by an encoder that each process loads once. `arithmetic` is that of the
    build's own encoder, which it must equal."""

    work: Workspace
    settings: BuildSettings
    arithmetic: Mapping[str, str | int]
    load_encoder: Callable[[], Encoder]

    def __call__(self) -> Callable[[int, Tell], None]:
        corpus = Corpus(self.work, self.settings.chunk_length)
        tokenizer, encoder = Tokenizer.load(self.work.tokenizer), self.load_encoder()
        require_arithmetic(self.arithmetic, encoder.arithmetic, "a process of the engine computes otherwise")

        def encode(block: int, tell: Tell) -> None:
            for _ in _encode_here(corpus, tokenizer, encoder, self.settings, self.work, [block]):
                pass

        return encode


def _encode_here(
    corpus: Corpus,
    tokenizer: Tokenizer,
    encoder: Encoder,
    settings: BuildSettings,
    work: Workspace,
    blocks: Sequence[int],
) -> Generator[int]:
    template = PassageTemplate(settings.passage_template)
    pulled: deque[tuple[str, list[str]]] = deque()

    def passages() -> Iterator[list[str]]:
        for block in blocks:
            first = block * settings.embed_block
            end = first + _length(corpus, settings, block)
            texts = corpus.passages(first, end, tokenizer, template)
            pulled.append((f"chunks {first} to {end - 1}", texts))
            yield texts

    for block, found in zip(blocks, encode_all(encoder, passages()), strict=True):
        what, texts = pulled.popleft()
        vectors_ND = check_vectors(found, encoder.dimension, texts, what)
        write_bytes_atomically(_path(work, block), vectors_ND.tobytes())
        yield block


def _length(corpus: Corpus, settings: BuildSettings, block: int) -> int:
    """Chunks of a block."""
    return min(settings.embed_block, corpus.encoded_chunks - block * settings.embed_block)


def encode_checked(encoder: Encoder, texts: list[str], what: str) -> NDArray[np.float32]:
    """Vectors [n, d] of `texts`, checked as by `check_vectors`."""
    return check_vectors(encoder.encode(texts), encoder.dimension, texts, what)


def check_vectors(found: NDArray[np.float32], dimension: int, texts: list[str], what: str) -> NDArray[np.float32]:
    """`found` as little-endian float32 [n, d]; raises InputError for another shape and for values that are not finite."""
    vectors_ND = np.ascontiguousarray(found, dtype="<f4")
    expected = (len(texts), dimension)
    if vectors_ND.shape != expected:
        raise InputError(
            f"the encoder gave an array of shape {vectors_ND.shape} for {what}, expected {expected}", field="encoder"
        )
    broken = np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))
    if len(broken):
        raise InputError(
            f"the encoder gave values that are not finite for {len(broken)} of {what}, first for the passage "
            f"{texts[int(broken[0])][:80]!r}: check its weights and its compute type",
            field="encoder",
        )
    return vectors_ND


def read_vectors(
    work: Workspace, corpus: Corpus, dimension: int, embed_block: int, first: int, end: int
) -> Iterator[NDArray[np.float32]]:
    """Vectors of the chunks [first, end), block after block, the base's among them."""
    for start in range(first - first % embed_block, end, embed_block):
        parts: list[NDArray[np.float32]] = []
        for in_base, begin, stop in corpus.runs(max(first, start), min(end, start + embed_block)):
            if in_base:
                assert corpus.base is not None
                parts.append(corpus.base.vectors(begin, stop))
            else:
                parts += _encoded(work, corpus, dimension, embed_block, begin, stop)
        yield parts[0] if len(parts) == 1 else np.concatenate(parts)


def _encoded(
    work: Workspace, corpus: Corpus, dimension: int, embed_block: int, first: int, end: int
) -> Iterator[NDArray[np.float32]]:
    """Vectors of the rows [first, end) of this stage."""
    for block in range(first // embed_block, -(-end // embed_block)):
        start = block * embed_block
        rows = min(embed_block, corpus.encoded_chunks - start)
        vectors_ND = map_array(_path(work, block), "f4", (rows, dimension))
        yield vectors_ND[max(first - start, 0) : end - start]


def read_rows(
    work: Workspace, corpus: Corpus, dimension: int, embed_block: int, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Vectors [n, d] of chunks, which are given in order."""
    vectors_ND = np.empty((len(rows), dimension), dtype=np.float32)
    ends = np.flatnonzero(np.diff(rows // embed_block, append=-1)) + 1
    first = 0
    for end in ends.tolist():
        start = int(rows[first]) // embed_block * embed_block
        (block_ND,) = read_vectors(work, corpus, dimension, embed_block, start, min(start + embed_block, corpus.chunks))
        vectors_ND[first:end] = block_ND[rows[first:end] - start]
        first = end
    return vectors_ND


def _path(work: Workspace, block: int) -> Path:
    return work.vectors / f"{block:08d}.f32"
