"""One digest for all weights of a live model: equal before and after means that no weight changed."""

from __future__ import annotations

import hashlib
import json

import torch

from openbook_model.model import RetroModel


@torch.no_grad()
def weights_hash(model: RetroModel) -> str:
    """SHA-256 (hexadecimal) over names, dtypes, shapes and bytes of every tensor, as they are in memory now."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(len(header).to_bytes(8, "little") + header.encode())
        values = tensor.detach().to("cpu").contiguous().view(-1)
        digest.update(memoryview(values.view(torch.uint8).numpy()))
    return digest.hexdigest()
