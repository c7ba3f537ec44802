"""Stage "train-index": the quantiser that all shards share, from a random sample of all chunks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openbook_database.build.corpus import Corpus
from openbook_database.build.embed_stage import read_rows
from openbook_database.build.progress import Stage
from openbook_database.build.settings import BuildSettings
from openbook_database.build.workspace import Workspace
from openbook_database.files import write_atomically
from openbook_database.index.files import QUANTISER
from openbook_database.index.quantiser import Quantiser, train_quantiser, write_quantiser
from openbook_database.index.recipe import Recipe

_SEED = 20_211_208


def sample_rows(rows: int, size: int, seed: int = _SEED) -> NDArray[np.int64]:
    """`size` different rows of `rows` in order, each set of them as likely as any other; equal for equal arguments."""
    return np.sort(np.random.Generator(np.random.PCG64(seed)).choice(rows, size, replace=False, shuffle=False))


def training_rows(recipe: Recipe, chunks: int, dimension: int, settings: BuildSettings) -> int:
    """How many chunks of a corpus a build trains on."""
    return recipe.sample_size(chunks, settings.train_sample, dimension, settings.memory)


def run_train_stage(
    corpus: Corpus,
    recipe: Recipe,
    dimension: int,
    settings: BuildSettings,
    work: Workspace,
    stage: Stage,
    *,
    gpu: bool = False,
) -> None:
    """Train what is not there yet; a quantiser that is (of an interrupted run, or of a base snapshot) is checked alone.

    What is left of a base may be fewer chunks than its recipe is trained on: they are repeated, since Faiss takes no fewer.
    """
    path = work.snapshot / QUANTISER
    size = training_rows(recipe, corpus.chunks, dimension, settings)
    reused = path.exists()
    if not reused:
        sample_ND = read_rows(work, corpus, dimension, settings.embed_block, sample_rows(corpus.chunks, size))
        if size < recipe.least_rows:
            sample_ND = np.resize(sample_ND, (recipe.least_rows, dimension))
        index = train_quantiser(recipe, sample_ND, gpu=gpu, progress=stage.reach(size))
        write_atomically(path, lambda temporary: write_quantiser(temporary, index))
    Quantiser(path, dimension=dimension).require(recipe)
    if reused:
        stage.advance(size, reused=True)
