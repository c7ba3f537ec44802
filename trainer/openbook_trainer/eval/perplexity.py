"""Perplexity of a text OFF (no retrieval), ON (neighbours of its chunks), with half of the database, and with another
chunk's neighbours; and the gate: whether the model uses them.

A document's first token is context and never predicted. All others count on every side, also those that no neighbour
can reach: a document's first chunk, and chunks after one that found nothing.

Axes: B = 1 rows, T tokens of a window, N tokens of a document, L chunks of a window, K neighbours, R tokens of a
neighbour, C clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator
from torch.nn.functional import cross_entropy

from openbook_core.config import FrozenConfig
from openbook_core.errors import InputError, OpenbookError
from openbook_core.tokenizer import Tokenizer
from openbook_model import RetroModel, cross_attention_state, load, weights_hash
from openbook_model.resolve import resolve_folder
from openbook_trainer.eval.clusters import Clusters, cluster
from openbook_trainer.eval.gate import closed, judge
from openbook_trainer.eval.half import MOST
from openbook_trainer.eval.overlap import by_overlap, overlaps
from openbook_trainer.eval.retrieved import Retrieved, retrieve
from openbook_trainer.eval.texts import MeasuredText, kind_of, read_texts
from openbook_trainer.eval.windows import Sliding, resolve_sliding
from openbook_trainer.neighbours import Neighbors

SIDES = ("off", "on", "half", "shuffled")
_RETRIEVAL = ("tokens_without_neighbours", "half_of_the_database", "overlap")
Progress = Callable[[str, int, int], None]


class PerplexityConfig(FrozenConfig):
    """What to measure. `words`: word perplexity for text that is not WikiText's, too."""

    model: str
    data: Path
    database: str | None = None
    retriever: str | None = None
    limit_tokens: int | None = Field(default=None, ge=2)
    block: PositiveInt | None = None
    stride: PositiveInt | None = None
    words: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.database is None) != (self.retriever is None):
            raise ValueError("database and retriever go together: which database to ask for, and the router's address")
        return self


def evaluate(config: PerplexityConfig, progress: Progress = lambda stage, done, total: None) -> dict[str, Any]:
    """The figures as they are written to JSON; what compares sides is None where retrieval is not measured.

    Raises OpenbookError: a model or file that cannot be read, a retriever that does not answer, a database that does
    not fit the model.
    """
    kind = kind_of(config.data)
    folder = resolve_folder(config.model)
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    model, tokenizer = load(folder, torch.float32).to(device), Tokenizer.load(folder)
    texts = read_texts(config.data, tokenizer, config.limit_tokens)
    state = cross_attention_state(model)
    measured = state == "on" and config.retriever is not None
    sliding = resolve_sliding(model.config, config.block, config.stride, grid=measured)
    retrieved = _retrieve(config, model, texts, tokenizer, progress) if measured else None
    clusters = cluster(texts, sliding, words=config.words or kind == "wikitext")
    losses = {"off": token_losses(model, texts, sliding, None, progress, "off")}
    if retrieved:
        sides = {"on": retrieved.neighbors, "half": retrieved.half, "shuffled": retrieved.shuffled()}
        for name, neighbors in sides.items():
            losses[name] = token_losses(model, texts, sliding, neighbors, progress, name)
    figures = {
        "model": config.model,
        "weights_hash": weights_hash(model),
        "data": config.data.name,
        "kind": kind,
        "documents": len(texts),
        "limit_tokens": config.limit_tokens,
        "tokens_scored": int(clusters.tokens_C.sum()),
        "bytes_scored": int(clusters.bytes_C.sum()),
        "words_scored": None if clusters.words_C is None else int(clusters.words_C.sum()),
        "block": sliding.block,
        "stride": sliding.stride,
        "cross_attention": state,
        "database": config.database if retrieved else None,
        "snapshot": retrieved.snapshot if retrieved else None,
        "documents_excluded_for_themselves": retrieved.known_documents if retrieved else None,
        "note": _note(config, state, retrieved),
        "standard_errors": clusters.description,
        **_sides(clusters, {name: clusters.totals(found) for name, found in losses.items()}),
        **(_retrieval(model, texts, sliding, clusters, retrieved, losses) if retrieved else dict.fromkeys(_RETRIEVAL)),
    }
    return {**figures, "gate": _gate(state, figures, clusters)}


def _gate(state: str, figures: dict[str, Any], clusters: Clusters) -> dict[str, Any] | None:
    """None where retrieval was not asked for."""
    if state != "on":
        return closed(state)
    if figures["on"] is None:
        return None
    return judge(figures["on_minus_off"], figures["shuffled_minus_on"], len(clusters.tokens_C), clusters.by)


def _sides(clusters: Clusters, totals: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Each side's figures and the paired differences; None where retrieval is not measured."""
    found: dict[str, Any] = {name: clusters.figures(totals[name]) if name in totals else None for name in SIDES}
    for one, other in (("on", "off"), ("half", "off"), ("half", "on"), ("shuffled", "on")):
        pair = one in totals and other in totals
        found[f"{one}_minus_{other}"] = clusters.difference(totals[one], totals[other]) if pair else None
    return found


def _retrieval(
    model: RetroModel,
    texts: Sequence[MeasuredText],
    sliding: Sliding,
    clusters: Clusters,
    retrieved: Retrieved,
    losses: dict[str, list[NDArray[np.float64]]],
) -> dict[str, Any]:
    m = model.config.chunk_length
    overlap = overlaps(texts, retrieved, m)
    return {
        "tokens_without_neighbours": sum(
            _unread(sliding.chunks_read(len(text.tokens_N), m), found.lengths_BLK[0])
            for text, found in zip(texts, retrieved.neighbors, strict=True)
        ),
        "half_of_the_database": {
            "chunks": sum(found.lengths_BLK.shape[1] for found in retrieved.half),
            "chunks_with_the_neighbours_of_on": retrieved.same_in_half(),
            "chunks_short_after_over_fetching": retrieved.half_short,
            "most_over_fetched": MOST,
        },
        "overlap": by_overlap(texts, clusters, overlap, losses, m),
    }


def _unread(chunks_N: NDArray[np.int64], lengths_LK: NDArray[np.int64]) -> int:
    """How many of the predicted tokens read no neighbour: their chunk is -1, or has none."""
    found_L = lengths_LK.any(axis=1)
    return int((~np.append(found_L, False)[chunks_N]).sum())


@torch.no_grad()
def token_losses(
    model: RetroModel,
    texts: Sequence[MeasuredText],
    sliding: Sliding,
    neighbors: Sequence[Neighbors] | None,
    progress: Progress = lambda stage, done, total: None,
    stage: str = "",
) -> list[NDArray[np.float64]]:
    """Nats [N - 1] of every predicted token of each text; OFF where `neighbors` (one [1, C, K, R] a text) is None."""
    device = next(model.parameters()).device
    m = model.config.chunk_length
    total = sum(len(text.tokens_N) - 1 for text in texts)
    found, done = [], 0
    for number, text in enumerate(texts):
        tokens_N = torch.from_numpy(text.tokens_N).to(device)
        losses = []
        for window in sliding.windows(len(tokens_N)):
            end = window.first + window.inputs
            neighbor_ids_BLKR = neighbor_lengths_BLK = None
            if neighbors is not None:
                chunks = slice(window.first // m, window.first // m + window.inputs // m)
                neighbor_ids_BLKR = torch.from_numpy(neighbors[number].ids_BLKR[:, chunks]).to(device)
                neighbor_lengths_BLK = torch.from_numpy(neighbors[number].lengths_BLK[:, chunks]).to(device)
            logits_BTV = model(
                tokens_N[None, window.first : end], neighbor_ids_BLKR, neighbor_lengths_BLK, first_chunk=m
            )
            labels_T = tokens_N[window.first + window.unscored + 1 : end + 1]
            losses.append(cross_entropy(logits_BTV[0, window.unscored :].float(), labels_T, reduction="none"))
            done += len(labels_T)
            progress(stage, done, total)
        found.append(torch.cat(losses).double().cpu().numpy())
    if not all(np.isfinite(losses).all() for losses in found):
        raise OpenbookError("the model gives a loss that is not finite; check its weights")
    return found


def _retrieve(
    config: PerplexityConfig, model: RetroModel, texts: list[MeasuredText], tokenizer: Tokenizer, progress: Progress
) -> Retrieved:
    assert config.retriever is not None
    assert config.database is not None
    chunks = sum((len(text.tokens_N) - 1) // model.config.chunk_length for text in texts)
    if chunks < 2:
        raise InputError(
            f"{config.data}: {chunks} whole chunks of {model.config.chunk_length} tokens; retrieval is measured on 2 or "
            "more. Give more text, or a higher --limit-tokens",
            field="data",
        )
    return retrieve(texts, model.config, tokenizer, config.retriever, config.database, progress)


def _note(config: PerplexityConfig, state: str, retrieved: Retrieved | None) -> str:
    if state != "on":
        return f"cross_attention: {state}: retrieval cannot change this model's output, only OFF is measured"
    if retrieved is None:
        return "no --database and --retriever given: only OFF is measured"
    if not retrieved.known_documents:
        return (
            "no document of the data is in the database under its id, so none was excluded: ON is too good if the "
            "database holds the same text"
        )
    return "neighbours from a chunk's own document are excluded"
