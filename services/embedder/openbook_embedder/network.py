"""The network alone, through transformers: token ids to hidden states."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from openbook_core.errors import InputError


class TorchNetwork:
    """Axes: N texts, T tokens of the longest, D elements of a hidden state."""

    def __init__(self, module: torch.nn.Module, dtype: str) -> None:
        self._module = module
        self.dtype = dtype

    @classmethod
    def load(cls, folder: Path) -> Self:
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
            raise InputError(f"{folder}: the encoder's weights do not load: {error}", field="model") from error
        missing = [name for name in info["missing_keys"] if not _is_unused(name)]
        if missing:
            raise InputError(
                f"{folder}: the weights lack {len(missing)} tensors of the encoder, first {sorted(missing)[0]!r}; "
                "these are another model's weights",
                field="model",
            )
        return cls(module.eval(), "float32")

    def to_bfloat16(self) -> TorchNetwork:
        """A copy that computes in bfloat16."""
        return TorchNetwork(copy.deepcopy(self._module).to(torch.bfloat16), "bfloat16")

    def hidden(self, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Last hidden states [N, T, D]; those of padding, where `mask_NT` is 0, mean nothing."""
        return self._module(input_ids=ids_NT, attention_mask=mask_NT).last_hidden_state  # type: ignore[no-any-return]

    def weights_digest(self) -> str:
        """SHA-256 over names, shapes and float32 values of the parameters, however the file stores them."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self._module.named_parameters()):
            if not _is_unused(name):
                digest.update(f"{name} {list(parameter.shape)}\n".encode())
                digest.update(np.ascontiguousarray(parameter.detach().float().numpy(), dtype="<f4").data)
        return digest.hexdigest()


def _is_unused(name: str) -> bool:
    """The pooler head is BERT's for classification; copies of one encoder come with it and without."""
    return name.startswith("pooler.")
