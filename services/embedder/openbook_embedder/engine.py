"""The encoder: texts to token ids, the network over padded batches, one vector per text in float32.

Axes: N texts, T tokens of the longest text in a batch, D elements of a vector.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError
from openbook_core.fingerprint import Fingerprint
from openbook_core.probes import PROBE_TEXTS
from openbook_core.telemetry import get_logger
from openbook_core.weights import resolve_model
from openbook_embedder.config import Dtype, EncoderOptions
from openbook_embedder.folder import EncoderFolder
from openbook_embedder.network import TorchNetwork
from openbook_embedder.pooling import pool
from openbook_embedder.queueing import BATCH_COST_TOKENS
from openbook_embedder.rows import RowThreads
from openbook_embedder.tokens import EncoderTokenizer, TokenizedTexts

# bfloat16 is chosen only where it is clearly faster, so that noise in the timing does not change the choice.
_WORTHWHILE_SPEEDUP = 1.3
_MIN_PROBE_COSINE = 0.999

_log = get_logger(__name__)


class EncoderEngine:
    """An encoder held in memory. Safe to call from several threads, but made to be called from one."""

    def __init__(self, folder: EncoderFolder, tokenizer: EncoderTokenizer, network: TorchNetwork) -> None:
        """`network` is in float32; use `load`."""
        self._folder = folder
        self._tokenizer = tokenizer
        self._network = network
        self._rows = RowThreads(self._encode_rows)
        self.dimension = folder.architecture.dimension
        self.max_tokens = folder.max_tokens
        self.vocab_size = folder.architecture.vocab_size
        self.probe_texts = PROBE_TEXTS
        self.fingerprint = Fingerprint(
            {
                "architecture": folder.architecture.record,
                "weights": network.weights_digest(),
                "tokenizer": tokenizer.record,
                "max_tokens": folder.max_tokens,
                "pooling": folder.pooling,
                "normalisation": "l2" if folder.normalize else "none",
                "prompts": folder.prompts,
            }
        )
        self.probe_vectors: NDArray[np.float32] = self.encode(PROBE_TEXTS)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        dtype: Dtype = "auto",
        threads: int | None = None,
        options: EncoderOptions | None = None,
    ) -> Self:
        """A folder, with the files of sentence-transformers or without, or a name (see `openbook_core.weights`).

        `dtype` "auto" times bfloat16 against float32 and logs what it chose. `threads` sets torch's threads for the
        whole process. Raises NotFoundError for an unknown model, InputError for a folder that is not a served
        encoder's, ConfigError for options against it, ArgumentError for an unknown dtype.
        """
        if dtype not in get_args(Dtype):
            raise ArgumentError(f"dtype: given {dtype!r}; known: {', '.join(get_args(Dtype))}", field="dtype")
        if threads is not None:
            torch.set_num_threads(threads)
        folder = EncoderFolder.read(resolve_model(str(name_or_path)), options or EncoderOptions())
        tokenizer = EncoderTokenizer(folder)
        engine = cls(folder, tokenizer, TorchNetwork.load(folder.path))
        if not folder.normalize:
            _log.warning(
                f"{name_or_path}: its vectors are not scaled to length one, and databases compare by inner product; "
                "set normalize if the model is meant for cosine"
            )
        if dtype == "auto":
            engine._choose_dtype()
        elif dtype == "bfloat16":
            engine._use(engine._network.to_bfloat16())
        return engine

    @property
    def dtype(self) -> str:
        """Compute type, "float32" or "bfloat16"."""
        return self._network.dtype

    def tokenize(self, texts: Sequence[str], role: str = "passage") -> TokenizedTexts:
        """Token ids with the prompt of `role` ("query" or "passage") and special tokens, cut to `max_tokens`."""
        return self._tokenizer.tokenize(texts, role)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of passages, in order; the result is a function of this list alone."""
        return self._encode_sorted(self.tokenize(texts, "passage").ids)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of queries, in order; differs from `encode` where the model has a prompt for queries."""
        return self._encode_sorted(self.tokenize(texts, "query").ids)

    def encode_batch(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors [n, d] of token ids that pass `check_ids`, as one batch: padded, and divided between cores."""
        return self._rows.encode(ids)

    def _encode_rows(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        width = max(len(row) for row in ids)
        ids_NT = torch.full((len(ids), width), self._folder.architecture.pad_id, dtype=torch.long)
        mask_NT = torch.zeros(len(ids), width, dtype=torch.long)
        for row, tokens in enumerate(ids):
            ids_NT[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask_NT[row, : len(tokens)] = 1
        with torch.inference_mode():
            hidden_NTD = self._network.hidden(ids_NT, mask_NT)
            vectors_ND = pool(hidden_NTD, mask_NT, self._folder.pooling, normalize=self._folder.normalize)
        return vectors_ND.numpy()

    def check_ids(self, ids: Sequence[int], field: str) -> None:
        """Raise ArgumentError for a text's token ids that are none, too many, or not all the network's."""
        if not 1 <= len(ids) <= self.max_tokens:
            raise ArgumentError(
                f"{field}: {len(ids)} token ids, the encoder reads 1 to {self.max_tokens}; they are not cut",
                field=field,
            )
        if not 0 <= min(ids) <= max(ids) < self.vocab_size:
            wrong = next(token for token in ids if not 0 <= token < self.vocab_size)
            raise ArgumentError(
                f"{field}: token id {wrong} is out of range, this encoder's are 0 to {self.vocab_size - 1}", field=field
            )

    def _encode_sorted(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        vectors_ND = np.empty((len(ids), self.dimension), dtype=np.float32)
        for places in self.sub_batches(ids):
            vectors_ND[places] = self.encode_batch([ids[place] for place in places])
        return vectors_ND

    def sub_batches(self, ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Places in `ids` that `encode` puts into one batch, a function of `ids` and the number of threads alone."""
        batches: list[list[int]] = []
        width = padding = 0
        for place in sorted(range(len(ids)), key=lambda place: len(ids[place]), reverse=True):
            padding += width - len(ids[place])
            full = not batches or width * (len(batches[-1]) + 1) > self._rows.batch_tokens
            if full or padding > BATCH_COST_TOKENS:
                batches.append([])
                width, padding = len(ids[place]), 0
            batches[-1].append(place)
        return batches

    def _use(self, network: TorchNetwork) -> None:
        self._network = network
        self.probe_vectors = self.encode(PROBE_TEXTS)

    def _choose_dtype(self) -> None:
        exact, exact_vectors_ND = self._network, self.probe_vectors
        reduced = exact.to_bfloat16()
        exact_s, reduced_s = self._fastest_s(exact, reduced)
        self._use(reduced)
        cosine = _lowest_cosine(exact_vectors_ND, self.probe_vectors)
        if exact_s < _WORTHWHILE_SPEEDUP * reduced_s or cosine < _MIN_PROBE_COSINE:
            self._network, self.probe_vectors = exact, exact_vectors_ND
        _log.info(
            f"dtype auto: {self.dtype} (16 texts of 64 tokens: float32 {exact_s * 1000:.1f} ms, bfloat16 "
            f"{reduced_s * 1000:.1f} ms; lowest cosine between them on the probe texts {cosine:.5f})"
        )

    def _fastest_s(self, *networks: TorchNetwork) -> list[float]:
        """Shortest of three runs of each, taken in turns: other work on the machine disturbs them alike."""
        shape = (16, min(64, self.max_tokens))
        generator = torch.Generator().manual_seed(0)
        ids_NT = torch.randint(0, self.vocab_size, shape, generator=generator)
        mask_NT = torch.ones_like(ids_NT)
        seconds: list[list[float]] = [[] for _ in networks]
        with torch.inference_mode():
            for _ in range(4):
                for network, taken in zip(networks, seconds, strict=True):
                    start = time.perf_counter()
                    network.hidden(ids_NT, mask_NT)
                    taken.append(time.perf_counter() - start)
        return [min(taken[1:]) for taken in seconds]


def _lowest_cosine(left_ND: NDArray[np.float32], right_ND: NDArray[np.float32]) -> float:
    lengths_N = np.linalg.norm(left_ND, axis=1) * np.linalg.norm(right_ND, axis=1)
    return float(((left_ND * right_ND).sum(axis=1) / lengths_N).min())
