"""The encoder: BERT through transformers, mean pooling over the mask, vectors of length one in float32.

Axes: N texts, T tokens of the longest text in a batch, D elements of a vector.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError, InputError
from openbook_core.fingerprint import Fingerprint
from openbook_core.probes import PROBE_TEXTS
from openbook_core.telemetry import get_logger
from openbook_core.weights import resolve_model
from openbook_embedder.config import Dtype
from openbook_embedder.folder import EncoderFolder
from openbook_embedder.tokens import EncoderTokenizer, TokenizedTexts

# Padded tokens of the sub-batches of `encode`: part of what makes a build's bytes repeatable, so not a setting.
_SUB_BATCH_TOKENS = 4096
# bfloat16 is chosen only where it is clearly faster, so that noise in the timing does not change the choice.
_WORTHWHILE_SPEEDUP = 1.3
_MIN_PROBE_COSINE = 0.999

_log = get_logger(__name__)


class EncoderEngine:
    """An encoder held in memory. Safe to call from several threads, but made to be called from one."""

    def __init__(self, folder: EncoderFolder, tokenizer: EncoderTokenizer, model: torch.nn.Module) -> None:
        """`model` is in float32; use `load`."""
        self._tokenizer = tokenizer
        self._model = model
        self.dtype = "float32"
        self.dimension = int(folder.architecture["hidden_size"])
        self.max_tokens = folder.max_tokens
        self.vocab_size = int(folder.architecture["vocab_size"])
        self.probe_texts = PROBE_TEXTS
        self.fingerprint = Fingerprint(
            {
                "architecture": folder.architecture,
                "weights": _weights_digest(model),
                "tokenizer": tokenizer.record,
                "max_tokens": folder.max_tokens,
                "pooling": "mean",
                "normalisation": "l2",
                "prompts": folder.prompts,
            }
        )
        self.probe_vectors: NDArray[np.float32] = self.encode(PROBE_TEXTS)

    @classmethod
    def load(cls, name_or_path: str | Path, *, dtype: Dtype = "auto", threads: int | None = None) -> Self:
        """A folder in the layout of sentence-transformers, or a model name (see `openbook_core.weights`).

        `dtype` "auto" times bfloat16 against float32 and logs what it chose. `threads` sets torch's threads for the
        whole process. Raises NotFoundError for an unknown model, InputError for a folder that is not an encoder's,
        ArgumentError for an unknown dtype.
        """
        if dtype not in get_args(Dtype):
            raise ArgumentError(f"dtype: given {dtype!r}; known: {', '.join(get_args(Dtype))}", field="dtype")
        if threads is not None:
            torch.set_num_threads(threads)
        folder = EncoderFolder.read(resolve_model(str(name_or_path)))
        engine = cls(folder, EncoderTokenizer(folder), _load_model(folder.path))
        if dtype == "auto":
            engine._choose_dtype()
        elif dtype == "bfloat16":
            engine._use(_to_bfloat16(engine._model), "bfloat16")
        return engine

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
        """Vectors [n, d] of token ids, as one padded batch."""
        width = max(len(row) for row in ids)
        ids_NT = torch.zeros(len(ids), width, dtype=torch.long)
        mask_NT = torch.zeros(len(ids), width, dtype=torch.long)
        for row, tokens in enumerate(ids):
            ids_NT[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask_NT[row, : len(tokens)] = 1
        with torch.inference_mode():
            hidden_NTD = self._model(input_ids=ids_NT, attention_mask=mask_NT).last_hidden_state.float()
            weight_NT1 = mask_NT.unsqueeze(-1).float()
            mean_ND = (hidden_NTD * weight_NT1).sum(1) / weight_NT1.sum(1)
            vectors_ND: NDArray[np.float32] = torch.nn.functional.normalize(mean_ND, dim=-1).numpy()
        return vectors_ND

    def _encode_sorted(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        vectors_ND = np.empty((len(ids), self.dimension), dtype=np.float32)
        for places in self.sub_batches(ids):
            vectors_ND[places] = self.encode_batch([ids[place] for place in places])
        return vectors_ND

    def sub_batches(self, ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Places in `ids` that `encode` puts into one batch, a function of `ids` alone."""
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]), reverse=True)
        batches = []
        while order:
            rows = max(1, _SUB_BATCH_TOKENS // len(ids[order[0]]))
            batches.append(order[:rows])
            order = order[rows:]
        return batches

    def _use(self, model: torch.nn.Module, dtype: str) -> None:
        self._model, self.dtype = model, dtype
        self.probe_vectors = self.encode(PROBE_TEXTS)

    def _choose_dtype(self) -> None:
        exact, exact_vectors_ND = self._model, self.probe_vectors
        reduced = _to_bfloat16(exact)
        exact_s, reduced_s = self._fastest_s(exact, reduced)
        self._use(reduced, "bfloat16")
        cosine = float((exact_vectors_ND * self.probe_vectors).sum(axis=1).min())
        if exact_s < _WORTHWHILE_SPEEDUP * reduced_s or cosine < _MIN_PROBE_COSINE:
            self._model, self.dtype, self.probe_vectors = exact, "float32", exact_vectors_ND
        _log.info(
            f"dtype auto: {self.dtype} (16 texts of 64 tokens: float32 {exact_s * 1000:.1f} ms, bfloat16 "
            f"{reduced_s * 1000:.1f} ms; lowest cosine between them on the probe texts {cosine:.5f})"
        )

    def _fastest_s(self, *models: torch.nn.Module) -> list[float]:
        """Shortest of three runs of each, taken in turns: other work on the machine disturbs them alike."""
        ids_NT = torch.randint(0, self.vocab_size, (16, 64), generator=torch.Generator().manual_seed(0))
        mask_NT = torch.ones_like(ids_NT)
        seconds: list[list[float]] = [[] for _ in models]
        with torch.inference_mode():
            for _ in range(4):
                for model, taken in zip(models, seconds, strict=True):
                    start = time.perf_counter()
                    model(input_ids=ids_NT, attention_mask=mask_NT)
                    taken.append(time.perf_counter() - start)
        return [min(taken[1:]) for taken in seconds]


def _load_model(folder: Path) -> torch.nn.Module:
    """The network in float32; refuses weights that leave part of it at random values."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: the encoder's weights do not load: {error}", field="model") from error
    missing = [name for name in info["missing_keys"] if not _is_unused(name)]
    if missing:
        raise InputError(
            f"{folder}: the weights lack {len(missing)} tensors of the encoder, first {sorted(missing)[0]!r}; "
            "these are another model's weights",
            field="model",
        )
    return model.eval()  # type: ignore[no-any-return]


def _is_unused(name: str) -> bool:
    """The pooler head is BERT's for classification; copies of one encoder come with it and without."""
    return name.startswith("pooler.")


def _weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and float32 values of the parameters, however the file stores them."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not _is_unused(name):
            digest.update(f"{name} {list(parameter.shape)}\n".encode())
            digest.update(np.ascontiguousarray(parameter.detach().float().numpy(), dtype="<f4").data)
    return digest.hexdigest()


def _to_bfloat16(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model).to(torch.bfloat16)
