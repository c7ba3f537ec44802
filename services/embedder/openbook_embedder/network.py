"""The network with its pooling, through transformers and torch: token ids to vectors.

Axes: N texts, T tokens of the longest, D elements of a hidden state and of a vector.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openbook_core.errors import ConfigError, InputError
from openbook_embedder.shapes import FixedShapes, Record, usual_shapes

# Hidden states [N, T, D] and mask [N, T] to vectors [N, D] in float32, on their device.
Head = Callable[[Tensor, Tensor], Tensor]


class Network(Protocol):
    """What computes; one for each backend."""

    @property
    def dtype(self) -> str:
        """What a build's bytes depend on: the compute type, with the backend before it where that is not torch."""

    def vectors(self, ids_NT: NDArray[np.int64], mask_NT: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors [N, D] of texts padded on the right; `mask_NT` is 1 at their tokens."""

    def weights_digest(self) -> str:
        """SHA-256 over names, shapes and float32 values of the parameters, however the file stores them."""


class TorchNetwork:
    """On the CPU or a GPU, in float32 or bfloat16."""

    def __init__(self, module: torch.nn.Module, head: Head, dtype: str = "float32", device: str = "cpu") -> None:
        self._module = module
        self._head = head
        self.dtype = dtype
        self.device = device
        self._forward: Callable[..., Tensor] = self._hidden
        self._fixed: FixedShapes | None = None
        self.compiled = False

    @classmethod
    def load(cls, folder: Path, head: Head, device: str = "cpu") -> Self:
        """In float32; InputError for weights that would leave part of the network at random values."""
        from safetensors import SafetensorError
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            module, info = AutoModel.from_pretrained(
                str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            _refuse_pickle(folder)
            raise InputError(f"{folder}: the encoder's weights do not load: {error}", field="model") from error
        missing = [name for name in info["missing_keys"] if not _is_unused(name)]
        if missing:
            raise InputError(
                f"{folder}: the weights lack {len(missing)} tensors of the encoder, first {sorted(missing)[0]!r}; "
                "these are another model's weights",
                field="model",
            )
        return cls(module.eval().to(device), head, device=device)

    @property
    def module(self) -> torch.nn.Module:
        """Of transformers; what an exporter reads."""
        return self._module

    def to_bfloat16(self) -> TorchNetwork:
        """A copy that computes in bfloat16."""
        return TorchNetwork(copy.deepcopy(self._module).to(torch.bfloat16), self._head, "bfloat16", self.device)

    def compile(self) -> None:
        """Let torch.compile make code for any shape, at the next call."""
        self._forward = torch.compile(self._hidden, dynamic=True)
        self.compiled = True

    def fix_shapes(self, max_tokens: int, pad_id: int, record: Record) -> None:
        """Prepare for the usual shapes (see `shapes`), which batches are padded to from then on."""
        shapes = usual_shapes(max_tokens)
        self._fixed = FixedShapes(self._run, shapes, pad_id=pad_id, device=self.device, record=record)

    @property
    def at_fixed_shapes(self) -> bool:
        """After `fix_shapes`."""
        return self._fixed is not None

    def vectors(self, ids_NT: NDArray[np.int64], mask_NT: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `Network.vectors`."""
        with torch.inference_mode():
            found_ND = self._fixed(ids_NT, mask_NT) if self._fixed is not None else None
            if found_ND is None:
                found_ND = self._run(self._placed(ids_NT), None if mask_NT.all() else self._placed(mask_NT)).cpu()
            return found_ND.numpy()

    def weights_digest(self) -> str:
        """As `Network.weights_digest`."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self._module.named_parameters()):
            if not _is_unused(name):
                digest.update(f"{name} {list(parameter.shape)}\n".encode())
                digest.update(np.ascontiguousarray(parameter.detach().float().cpu().numpy(), dtype="<f4").data)
        return digest.hexdigest()

    def _placed(self, values_NT: NDArray[np.int64]) -> Tensor:
        host_NT = torch.from_numpy(values_NT)
        return host_NT if self.device == "cpu" else host_NT.pin_memory().to(self.device, non_blocking=True)

    def _run(self, ids_NT: Tensor, mask_NT: Tensor | None) -> Tensor:
        """No mask where no text is padded: attention has quicker kernels without, and nobody looks into a mask on a GPU
        to see that it is full."""
        return self._head(self._forward(ids_NT, mask_NT), torch.ones_like(ids_NT) if mask_NT is None else mask_NT)

    def _hidden(self, ids_NT: Tensor, mask_NT: Tensor | None) -> Tensor:
        """Last hidden states [N, T, D]; those of padding mean nothing."""
        return self._module(input_ids=ids_NT, attention_mask=mask_NT).last_hidden_state  # type: ignore[no-any-return]


def resolve_device(device: str) -> str:
    """ "cpu" or "cuda"; ConfigError where "cuda" is wanted and not there."""
    if device == "cpu":
        return device
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        reason = "finds no GPU" if torch.version.cuda else "was installed without CUDA"
        raise ConfigError(f"device: given 'cuda', and torch {torch.__version__} {reason}; take cpu", field="device")
    return "cuda" if available else "cpu"


def _refuse_pickle(folder: Path) -> None:
    """InputError with the conversion where the weights are a pickle alone, which is never opened here."""
    if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} has its weights in pytorch_model.bin only, a pickle, which may run code when it is opened and is not "
            'read; if you trust it, convert it once: python -c "from transformers import AutoModel; '
            f"AutoModel.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\"",
            field="model",
        )


def _is_unused(name: str) -> bool:
    """The pooler head is BERT's for classification; copies of one encoder come with it and without."""
    return name.startswith("pooler.")
