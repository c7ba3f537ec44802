"""Token vectors to one vector per text. Axes: N texts, T tokens of the longest text, D elements."""

from __future__ import annotations

import torch
from torch import Tensor

from openbook_embedder.config import Pooling


def pool(hidden_NTD: Tensor, mask_NT: Tensor, pooling: Pooling, *, normalize: bool) -> Tensor:
    """Vectors [N, D] in float32 of texts padded on the right; `mask_NT` is 1 at their tokens."""
    hidden_NTD = hidden_NTD.float()
    if pooling == "mean":
        weight_NT1 = mask_NT.unsqueeze(-1).float()
        vectors_ND = (hidden_NTD * weight_NT1).sum(1) / weight_NT1.sum(1)
    elif pooling == "cls":
        vectors_ND = hidden_NTD[:, 0]
    else:
        rows_N = torch.arange(len(mask_NT), device=mask_NT.device)
        vectors_ND = hidden_NTD[rows_N, mask_NT.sum(1) - 1]
    return torch.nn.functional.normalize(vectors_ND, dim=-1) if normalize else vectors_ND
