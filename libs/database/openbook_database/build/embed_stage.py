"""Stage "embed": the vectors of every chunk in canonical order, one file of float32 for each block of chunks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.build.corpus import Corpus
from openbook_database.build.progress import Stage
from openbook_database.build.settings import BuildSettings
from openbook_database.build.workspace import Workspace
from openbook_database.chunking import PassageTemplate
from openbook_database.encoder import Encoder
from openbook_database.files import map_array, write_bytes_atomically


def run_embed_stage(
    corpus: Corpus,
    tokenizer: Tokenizer,
    encoder: Encoder,
    settings: BuildSettings,
    work: Workspace,
    stage: Stage,
) -> None:
    """Encode the blocks that are not there yet. A block's vectors follow from its passages alone."""
    template = PassageTemplate(settings.passage_template)
    for block, first in enumerate(range(0, corpus.chunks, settings.embed_block)):
        end = min(first + settings.embed_block, corpus.chunks)
        path = _path(work, block)
        reused = path.exists()
        if not reused:
            passages = corpus.passages(first, end, tokenizer, template)
            vectors_ND = encode_checked(encoder, passages, f"chunks {first} to {end - 1}")
            write_bytes_atomically(path, vectors_ND.tobytes())
        stage.advance(end - first, reused=reused)


def encode_checked(encoder: Encoder, texts: list[str], what: str) -> NDArray[np.float32]:
    """Vectors [n, d] of `texts`; raises InputError where the encoder gives another shape or values that are not finite."""
    vectors_ND = np.ascontiguousarray(encoder.encode(texts), dtype="<f4")
    expected = (len(texts), encoder.dimension)
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
    """Vectors of the chunks [first, end), block after block."""
    for block in range(first // embed_block, -(-end // embed_block)):
        start = block * embed_block
        rows = min(embed_block, corpus.chunks - start)
        vectors_ND = map_array(_path(work, block), "f4", (rows, dimension))
        yield vectors_ND[max(first - start, 0) : end - start]


def _path(work: Workspace, block: int) -> Path:
    return work.vectors / f"{block:08d}.f32"
