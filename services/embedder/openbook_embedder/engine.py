"""The encoder: texts to token ids, the network over padded batches, one vector per text in float32.

Axes: N texts, T tokens of the longest text in a batch, D elements of a vector.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError, ConfigError, OpenbookError
from openbook_core.fingerprint import Fingerprint
from openbook_core.probes import PROBE_TEXTS, lowest_cosine
from openbook_core.telemetry import get_logger
from openbook_core.weights import resolve_model
from openbook_embedder.backends import open_network
from openbook_embedder.compute_type import judge_bfloat16
from openbook_embedder.config import Backend, Device, Dtype, EncoderOptions
from openbook_embedder.exported import MIN_PROBE_COSINE
from openbook_embedder.folder import EncoderFolder
from openbook_embedder.network import Network, TorchNetwork
from openbook_embedder.pooling import pool
from openbook_embedder.queueing import BATCH_COST_TOKENS
from openbook_embedder.rows import BEST_TOKENS, ENOUGH_TOKENS, RowThreads, padded
from openbook_embedder.shapes import cuda_graph
from openbook_embedder.tokens import EncoderTokenizer, TokenizedTexts

# Padded tokens of the sub-batches of `encode`, and of the service's batches. What is enough for a CPU leaves a GPU idle.
_BATCH_TOKENS, _GPU_SUB_BATCH_TOKENS, _GPU_BATCH_TOKENS = 4096, 8192, 16_384

# In bfloat16 on a CPU, oneDNN and torch's layer over it (on each thread) keep a compiled kernel for each shape of a product,
# 1,024 by default. Lengths that vary make a new one nearly always, over 0.6 GB that help nobody. A few dozen
# serve chunks of one length.
_KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_MOST_KERNELS = "64"

_log = get_logger(__name__)


class EncoderEngine:
    """An encoder held in memory. Safe to call from several threads, but made to be called from one."""

    def __init__(self, folder: EncoderFolder, tokenizer: EncoderTokenizer, network: Network) -> None:
        """Use `load`."""
        self._folder = folder
        self._tokenizer = tokenizer
        self._network = network
        on_cores = isinstance(network, TorchNetwork) and network.device == "cpu"
        threads = torch.get_num_threads() if on_cores else 1
        self._rows = RowThreads(self._encode_rows, threads)
        # Part of what makes a build's bytes repeatable, so no function of the number of threads.
        self._sub_batch_tokens = BEST_TOKENS if on_cores else _BATCH_TOKENS
        if self.device != "cpu":
            self._sub_batch_tokens = _GPU_SUB_BATCH_TOKENS
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
        backend: Backend = "auto",
        device: Device = "auto",
        compile: bool | None = None,
        threads: int | None = None,
        options: EncoderOptions | None = None,
    ) -> Self:
        """A folder, with the files of sentence-transformers or without, or a name (see `openbook_core.weights`).

        `backend` "auto" takes an exported network where the folder holds one (see `backends`). In torch, `dtype` "auto"
        times bfloat16 against float32 and logs what it chose, `device` "auto" takes a GPU where there is one, and there
        `compile` None means CUDA graphs, and torch.compile where a C compiler is found; True means torch.compile on any
        device, False neither. `threads` sets torch's threads for the whole process.
        Raises NotFoundError for an unknown model, InputError for a folder that is not a served encoder's, ConfigError
        for options against it or against what is installed, CorruptError for a file that was changed, ArgumentError for
        an unknown dtype, backend or device.
        """
        for name in _KERNELS:
            os.environ.setdefault(name, _MOST_KERNELS)  # each is read at its first use
        if threads is not None:
            torch.set_num_threads(threads)
        folder = EncoderFolder.read(resolve_model(str(name_or_path)), options or EncoderOptions())
        tokenizer = EncoderTokenizer(folder)
        head = partial(pool, pooling=folder.pooling, normalize=folder.normalize)
        network = open_network(folder, head, backend=backend, device=device, dtype=dtype)
        engine = cls(folder, tokenizer, network)
        if not folder.normalize:
            _log.warning(
                f"{name_or_path}: its vectors are not scaled to length one, and databases compare by inner product; "
                "set normalize if the model is meant for cosine"
            )
        if isinstance(network, TorchNetwork):
            engine._prepare(network, dtype, compile)
        elif compile:
            raise ConfigError("compile: only torch compiles, this network was exported; leave it out", field="compile")
        return engine

    @property
    def dtype(self) -> str:
        """Compute type, "float32" or "bfloat16"; with the backend before it where that is not torch: "onnx-int8"."""
        return self._network.dtype

    @property
    def arithmetic(self) -> Mapping[str, str | int]:
        """What the last bits of `encode` follow from, beside the texts, the network, its dtype and the libraries.

        In torch on a CPU the number of threads is not among it.
        """
        if not isinstance(self._network, TorchNetwork):
            return {"cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
        network, made = self._network, {}
        if network.compiled or network.at_fixed_shapes:
            graphs = "on" if network.at_fixed_shapes else "off"
            made = {"compile": "on" if network.compiled else "off", "graphs": graphs}
        if network.device == "cpu":
            return {"cpu": torch.backends.cpu.get_cpu_capability(), **made}
        gpu = torch.cuda.get_device_name(network.device)
        return {"gpu": gpu, "torch": torch.__version__, "compile": "off", "graphs": "off", **made}

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return self._network.device if isinstance(self._network, TorchNetwork) else "cpu"

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of a batch that is large enough for the device."""
        return _BATCH_TOKENS if self.device == "cpu" else _GPU_BATCH_TOKENS

    @property
    def cores(self) -> int:
        """Between how many a batch is divided by rows."""
        return self._rows.count

    @property
    def enough_tokens(self) -> int:
        """Padded tokens of a batch from which a larger one takes hardly less time for each text."""
        if self.device != "cpu":
            return self.batch_tokens
        return min(self.batch_tokens, ENOUGH_TOKENS * torch.get_num_threads())

    def tokenize(self, texts: Sequence[str], role: str = "passage") -> TokenizedTexts:
        """Token ids with the prompt of `role` ("query" or "passage") and special tokens, cut to `max_tokens`."""
        return self._tokenizer.tokenize(texts, role)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of passages, in order; the result is a function of this list alone."""
        return self.encode_ids(self.tokenize(texts, "passage").ids)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of queries, in order; differs from `encode` where the model has a prompt for queries."""
        return self.encode_ids(self.tokenize(texts, "query").ids)

    def encode_batch(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors [n, d] of token ids that pass `check_ids`, as one batch: padded, and divided between cores."""
        return self._rows.encode(ids)

    def encode_ids(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors [n, d] of token ids that pass `check_ids`, in sub-batches, each on one core: the same bytes for any
        number of threads, and for these ids in the parts that `batches` makes."""
        vectors_ND = np.empty((len(ids), self.dimension), dtype=np.float32)
        sub_batches = self.sub_batches(ids)
        encoded = self._rows.map([[ids[place] for place in places] for places in sub_batches])
        for places, part_ND in zip(sub_batches, encoded, strict=True):
            vectors_ND[places] = part_ND
        return vectors_ND

    def _encode_rows(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        return self._network.vectors(*padded(ids, self._folder.architecture.pad_id))

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

    def batches(self, ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Places in `ids` for one call of `encode_ids` after the other: as many sub-batches each as there are cores."""
        found, step = self.sub_batches(ids), self._rows.count
        return [list(chain.from_iterable(found[first : first + step])) for first in range(0, len(found), step)]

    def sub_batches(self, ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Places in `ids` that go into one sub-batch, longest first: a function of `ids` alone.

        Sub-batches one after the other, as `ids` themselves, are divided into the same.
        """
        batches: list[list[int]] = []
        width = padding = 0
        for place in sorted(range(len(ids)), key=lambda place: len(ids[place]), reverse=True):
            padding += width - len(ids[place])
            full = not batches or width * (len(batches[-1]) + 1) > self._sub_batch_tokens
            if full or padding > BATCH_COST_TOKENS:
                batches.append([])
                width, padding = len(ids[place]), 0
            batches[-1].append(place)
        return batches

    def _prepare(self, network: TorchNetwork, dtype: Dtype, compile: bool | None) -> None:
        """The compute type; compiled and with graphs where that is wanted."""
        if dtype == "auto":
            network = self._choose_dtype(network)
        elif dtype == "bfloat16":
            network = network.to_bfloat16()
            self._use(network)
        on_gpu = network.device != "cpu"
        if compile is False or not (on_gpu or compile):
            return
        compiled = compile or _has_compiler()
        self._rows = RowThreads(self._encode_rows, 1)
        start, plain_ND = time.perf_counter(), self.probe_vectors
        try:
            if compiled:
                network.compile()
            if on_gpu:
                network.fix_shapes(self.max_tokens, self._folder.architecture.pad_id, cuda_graph())
            self._use(network)
        except Exception as error:
            raise OpenbookError(
                f"the network does not compile for {network.device}; start with --no-compile: {error}", field="compile"
            ) from error
        cosine = lowest_cosine(plain_ND, self.probe_vectors)
        if not cosine >= MIN_PROBE_COSINE:
            raise OpenbookError(
                f"compiling changed the vectors: lowest cosine on the probe texts {cosine:.5f}, at least "
                f"{MIN_PROBE_COSINE} is right; start with --no-compile",
                field="compile",
            )
        _log.info(
            f"prepared for {network.device} in {time.perf_counter() - start:.1f} s: torch.compile "
            f"{'on' if compiled else 'off, there is no C compiler'}, CUDA graphs {'on' if on_gpu else 'off'}"
        )

    def _use(self, network: Network) -> None:
        self._network = network
        self.probe_vectors = self.encode(PROBE_TEXTS)

    def _choose_dtype(self, exact: TorchNetwork) -> TorchNetwork:
        exact_vectors_ND = self.probe_vectors
        reduced = exact.to_bfloat16()
        # A GPU needs more work at once before the type shows.
        rows, width = 4 if exact.device == "cpu" else 512, min(64, self.max_tokens)
        exact_s, reduced_s = self._fastest_s(rows, width, exact, reduced)

        def both(texts: Sequence[str]) -> list[NDArray[np.float32]]:
            found = []
            for self._network in (exact, reduced):
                found.append(self.encode(texts))
            return found

        taken, said = judge_bfloat16(exact_s, reduced_s, both)
        if taken:
            self._use(reduced)
        else:
            self._network, self.probe_vectors = exact, exact_vectors_ND
        _log.info(f"dtype auto: {self.dtype} on {exact.device} ({rows} texts of {width} tokens: {said})")
        return reduced if taken else exact

    def _fastest_s(self, rows: int, width: int, first: Network, second: Network) -> tuple[float, float]:
        """Shortest of three runs of each, taken in turns: other work on the machine disturbs them alike.

        A second that takes four times as long is not asked again.
        """
        ids_NT = np.random.default_rng(0).integers(0, self.vocab_size, (rows, width))
        mask_NT = np.ones_like(ids_NT)

        def seconds(network: Network) -> float:
            start = time.perf_counter()
            network.vectors(ids_NT, mask_NT)
            return time.perf_counter() - start

        taken = []
        for _ in range(4):
            taken.append((seconds(first), seconds(second)))
            if len(taken) > 1 and taken[-1][1] > 4 * taken[-1][0]:
                break
        return min(one for one, _ in taken[1:]), min(other for _, other in taken[1:])


def _has_compiler() -> bool:
    """What torch.compile needs, and slim images lack."""
    return any(map(shutil.which, ("cc", "gcc", "clang")))
