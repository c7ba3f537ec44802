"""The RETRO network: a decoder whose chunked cross attention reads retrieved neighbours.

Axes: B batch, T tokens, D width, V vocabulary, L chunks, K neighbours, R tokens of a neighbour, M chunk length,
C = B*L chunk rows, S = K*R keys of a chunk, E encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from openbook_core.errors import ArgumentError
from openbook_model import decoding
from openbook_model.block import Block, Retrieval
from openbook_model.cache import DecodeCache
from openbook_model.chunks import ChunkGrid, resolve_first_chunk
from openbook_model.config import RetroConfig
from openbook_model.encoder import NeighborEncoder
from openbook_model.layers import Norm, Rotary

CrossAttentionState = Literal["on", "off (gate 0)", "absent"]


class RetroModel(nn.Module):
    """Weights mean nothing until `initialise`, `load` or a conversion fills them; it can be built on the meta device.

    `blocks` (and `encoder.blocks`) are what a trainer shards, checkpoints or compiles one by one.
    """

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.max_positions, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(1, config.num_layers + 1))
        self.encoder = NeighborEncoder(config) if config.cross_attention_layers else None
        self.final_norm = Norm(config.norm, config.hidden_size, config.norm_epsilon, config.norm_bias)
        self.head = None if config.tied_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def allocate(
        cls, config: RetroConfig, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> RetroModel:
        """A model with storage whose values are arbitrary, without the cost of torch's own initialisation."""
        with torch.device("meta"), _WithoutInitialisation():
            model = cls(config)
        return model.to(dtype).to_empty(device=device)

    def forward(
        self,
        input_ids_BT: Tensor,
        neighbor_ids_BLKR: Tensor | None = None,
        neighbor_lengths_BLK: Tensor | None = None,
        *,
        first_chunk: int | Sequence[int] | Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        wanted_BT: Tensor | None = None,
        all_or_none: bool = False,
    ) -> Tensor:
        """Logits [B, T, V], or [N, V] of the N positions in `wanted_BT` (bool), row by row.

        Without neighbours (OFF) the cross attention is skipped entirely.

        L is the largest number of complete chunks of a row under its phase (`chunks.complete_chunks`); `first_chunk`
        gives one phase, or one per row, None NVIDIA's rule (L = ceil(T/m)). Any K >= 1 and R <= neighbor_length.
        `neighbor_lengths_BLK` counts each neighbour's tokens; 0 is a missing one, and a chunk without any adds
        exactly nothing. None means that all are present and whole. `all_or_none` is the caller's word that each chunk has
        all K, whole, or none: attention then has no masks for neighbours, with which a GPU's flash kernel cannot do.

        `document_ids_BT` packs documents into a row: tokens see only their own document and neighbours of its chunks,
        positions restart; each document starts on a chunk border, or after padding of another number so that a border
        is where it should be. Raises ArgumentError for shapes that do not fit.
        """
        batch, length = self._check_input(input_ids_BT)
        phases = resolve_first_chunk(first_chunk, batch, length, self.config.chunk_length)
        retrieval, encoded_CSE = None, None
        if neighbor_ids_BLKR is not None and self.encoder is not None:
            grid = ChunkGrid(phases, length, self.config.chunk_length, input_ids_BT.device)
            self._check_neighbors(grid, neighbor_ids_BLKR, neighbor_lengths_BLK)
            if grid.num_chunks and self.config.gate != 0.0:
                padding = neighbor_lengths_BLK, all_or_none
                retrieval = self._retrieval(grid, neighbor_ids_BLKR, *padding, document_ids_BT)
                if not self.config.encoder.conditioned:
                    encoded_CSE = retrieval.encode(None)
        positions_BT, mask = _positions_and_mask(input_ids_BT, document_ids_BT)
        hidden_BTD, rotary = self.embed(input_ids_BT, positions_BT)
        for block in self.blocks:
            hidden_BTD, encoded_CSE = block(hidden_BTD, rotary, mask, retrieval, encoded_CSE)
        return self.logits(hidden_BTD if wanted_BT is None else hidden_BTD[wanted_BT])

    def new_cache(
        self,
        slots: int,
        max_length: int,
        dtype: torch.dtype | None = None,
        *,
        num_neighbors: int | None = None,
    ) -> DecodeCache:
        """An empty cache for `slots` sequences of up to `max_length` tokens and `num_neighbors` neighbours per chunk.

        Keys and values are kept in `dtype`; by default float32 on a CPU (see `attention.attend`), else the weights'.
        A model whose gates are all 0 now skips its cross attention with this cache.
        """
        weight = self.embedding.weight
        if dtype is None:
            dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
        return DecodeCache(
            self.config,
            slots,
            max_length,
            dtype=dtype,
            device=weight.device,
            num_neighbors=num_neighbors or self.config.num_neighbors,
            cross_attention=cross_attention_state(self) == "on",
        )

    def decoder_blocks(self) -> Iterator[Block]:
        """The blocks, typed."""
        return cast("Iterator[Block]", iter(self.blocks))

    def save(self, path: str | Path, tokenizer_dir: str | Path | None = None) -> None:
        """Write the model's directory, which `openbook_model.load` reads; see `checkpoint.save`."""
        from openbook_model.checkpoint import save

        save(self, path, tokenizer_dir)

    prefill = decoding.prefill
    step = decoding.step
    extend = decoding.extend

    def embed(self, ids_T: Tensor, positions_T: Tensor) -> tuple[Tensor, Rotary | None]:
        """Input states of tokens at given positions, and the rotation of their queries and keys."""
        hidden_TD: Tensor = self.embedding(ids_T)
        if self.config.positions == "learned":
            return hidden_TD + self.position_embedding(positions_T), None
        config = self.config
        turns = (config.rotary_dim, config.rotary_base, hidden_TD.dtype, config.rotary_scaling)
        return hidden_TD, Rotary(positions_T, *turns)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits [..., V] of the last block's states."""
        normed_TD = self.final_norm(hidden_TD)
        return F.linear(normed_TD, self.embedding.weight) if self.head is None else self.head(normed_TD)

    def encode(
        self, neighbor_ids_CKR: Tensor, valid_CKR: Tensor | None = None, chunk_states_CMD: Tensor | None = None
    ) -> Tensor:
        """States [C, K*R, E] of the neighbours of C chunks; see NeighborEncoder."""
        assert self.encoder is not None, "a model without cross attention has no encoder"
        embedded_NRD = self.embedding(neighbor_ids_CKR.flatten(0, 1))
        if self.config.encoder.positions == "shared":
            embedded_NRD = embedded_NRD + self.position_embedding.weight[: embedded_NRD.shape[1]]
        valid_NR = None if valid_CKR is None else valid_CKR.flatten(0, 1)
        states_NRE: Tensor = self.encoder(embedded_NRD, valid_NR, chunk_states_CMD)
        return states_NRE.reshape(len(neighbor_ids_CKR), -1, states_NRE.shape[-1])

    def valid_tokens(self, lengths: Tensor, neighbor_length: int) -> Tensor:
        """Which tokens [..., R] of neighbours with these lengths [...] are attended to, under `neighbor_padding`."""
        if self.config.neighbor_padding == "attended":
            lengths = torch.where(lengths > 0, neighbor_length, 0)
        return torch.arange(neighbor_length, device=lengths.device) < lengths[..., None]

    def _retrieval(
        self,
        grid: ChunkGrid,
        neighbor_ids_BLKR: Tensor,
        neighbor_lengths_BLK: Tensor | None,
        all_or_none: bool,
        document_ids_BT: Tensor | None,
    ) -> Retrieval:
        neighbor_ids_CKR = neighbor_ids_BLKR.flatten(0, 1)
        valid_CKR, mask_CS, keep_BT1, own_CM1 = None, None, None, None
        if neighbor_lengths_BLK is not None:
            valid_CKR = self.valid_tokens(neighbor_lengths_BLK.flatten(0, 1), neighbor_ids_CKR.shape[-1])
            present_C1 = valid_CKR.flatten(1).any(dim=1, keepdim=True)
            if all_or_none:
                valid_CKR = None
            else:
                mask_CS = valid_CKR.flatten(1) | ~present_C1
            asked_C1 = present_C1.repeat_interleave(grid.batch // len(neighbor_ids_BLKR), dim=0)
            present_CM1 = asked_C1[:, None].expand(-1, grid.width, -1)
            keep_BT1 = grid.from_queries(present_CM1.float()) > 0
        if document_ids_BT is not None:
            asking_BL = document_ids_BT.gather(1, grid.ends_BL)
            own_CM1 = grid.to_chunks(document_ids_BT[..., None]) == asking_BL.flatten()[:, None, None]
            asking_BT = asking_BL.gather(1, grid.used_BT.clamp(min=0))
            same_BT1 = (asking_BT == document_ids_BT)[..., None]
            keep_BT1 = same_BT1 if keep_BT1 is None else keep_BT1 & same_BT1

        def encode(chunk_states_CMD: Tensor | None) -> Tensor:
            if chunk_states_CMD is not None and own_CM1 is not None:
                chunk_states_CMD = torch.where(own_CM1, chunk_states_CMD, 0.0)
            return self.encode(neighbor_ids_CKR, valid_CKR, chunk_states_CMD)

        return Retrieval(grid, encode, mask_CS, keep_BT1)

    def _check_input(self, input_ids_BT: Tensor) -> tuple[int, int]:
        if input_ids_BT.dim() != 2 or input_ids_BT.shape[1] == 0:
            raise ArgumentError(
                f"input_ids must be [batch, tokens], not empty; given {list(input_ids_BT.shape)}", field="input_ids"
            )
        batch, length = input_ids_BT.shape
        if length > self.config.max_positions:
            raise ArgumentError(
                f"{length} tokens are more than the model's {self.config.max_positions} positions; shorten the input",
                field="input_ids",
            )
        return batch, length

    def _check_neighbors(self, grid: ChunkGrid, ids_BLKR: Tensor, lengths_BLK: Tensor | None) -> None:
        rows = len(ids_BLKR) or 1
        if (
            rows < grid.batch
            and grid.num_chunks == 1
            and not self.config.encoder.conditioned
            and grid.batch % rows == 0
        ):
            expected = (rows, 1)
        else:
            expected = (grid.batch, grid.num_chunks)
        if ids_BLKR.dim() != 4 or tuple(ids_BLKR.shape[:2]) != expected or 0 in ids_BLKR.shape[2:]:
            raise ArgumentError(
                f"neighbor_ids must be [batch, chunks, neighbours, tokens] = [{expected[0]}, {expected[1]}, K, R] for "
                f"{grid.length} tokens with first_chunk {sorted(set(grid.phases))}; given {list(ids_BLKR.shape)}",
                field="neighbor_ids",
            )
        if ids_BLKR.shape[3] > self.config.neighbor_length:
            raise ArgumentError(
                f"neighbours of {ids_BLKR.shape[3]} tokens; the model reads at most {self.config.neighbor_length}",
                field="neighbor_ids",
            )
        if lengths_BLK is not None and lengths_BLK.shape != ids_BLKR.shape[:3]:
            raise ArgumentError(
                f"neighbor_lengths must be {list(ids_BLKR.shape[:3])}; given {list(lengths_BLK.shape)}",
                field="neighbor_lengths",
            )


class _WithoutInitialisation(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`; on the meta device one alone brings in torch's compiler (seconds)."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def cross_attention_state(model: RetroModel) -> CrossAttentionState:
    """Whether retrieval can change this model's output: "off (gate 0)" if every gate is exactly 0."""
    if not model.config.cross_attention_layers:
        return "absent"
    if model.config.gate != "learned":
        return "off (gate 0)" if model.config.gate == 0.0 else "on"
    gates = [value for name, value in model.named_parameters() if name.endswith(".gate")]
    return "on" if any(bool((gate != 0).any()) for gate in gates) else "off (gate 0)"


def next_token_loss(logits_BTV: Tensor, labels_BT: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Mean cross entropy (nats, float32) against labels that are already shifted; `ignore_index` ones do not count."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=ignore_index)


def _positions_and_mask(input_ids_BT: Tensor, document_ids_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
    positions_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    if document_ids_BT is None:
        return positions_T, None
    if document_ids_BT.shape != input_ids_BT.shape:
        raise ArgumentError(
            f"document_ids must be {list(input_ids_BT.shape)}; given {list(document_ids_BT.shape)}",
            field="document_ids",
        )
    starts_BT = F.pad(document_ids_BT[:, 1:] != document_ids_BT[:, :-1], (1, 0), value=True)
    positions_BT = positions_T - torch.where(starts_BT, positions_T, 0).cummax(dim=1).values
    causal_TT = positions_T[:, None] >= positions_T
    same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    return positions_BT, (causal_TT & same_BTT)[:, None]
