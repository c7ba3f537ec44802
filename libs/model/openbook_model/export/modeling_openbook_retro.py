"""A RETRO model of Openbook for transformers: `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.

Needs the packages openbook-core and openbook-model (libs/core and libs/model of Openbook) installed. Not there: a
cache, padded batches, and generation with retrieval, for which there is `openbook serve generator`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from openbook_model import RetroConfig, RetroModel, next_token_loss


class OpenbookRetroConfig(PretrainedConfig):
    """`model` holds the settings of openbook_model.RetroConfig."""

    model_type = "openbook-retro"

    def __init__(self, model: dict[str, Any] | None = None, **settings: Any) -> None:
        self.model = model or {}
        retro = RetroConfig.parse(self.model) if model else None
        if retro is not None:
            self.vocab_size, self.hidden_size = retro.vocab_size, retro.hidden_size
            self.num_hidden_layers, self.num_attention_heads = retro.num_layers, retro.num_heads
            self.max_position_embeddings = retro.max_positions
        settings.setdefault("use_cache", False)
        super().__init__(**settings)


class OpenbookRetroForCausalLM(PreTrainedModel, GenerationMixin):
    """Logits OFF, and ON where `neighbor_ids` are given; see RetroModel.forward for their layout."""

    config_class = OpenbookRetroConfig
    base_model_prefix = "retro"

    def __init__(self, config: OpenbookRetroConfig) -> None:
        super().__init__(config)
        self.retro = RetroModel(RetroConfig.parse(config.model))
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.retro.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        neighbor_ids: Tensor | None = None,
        neighbor_lengths: Tensor | None = None,
        first_chunk: int | Tensor | None = None,
        labels: Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutput:
        """Logits [B, T, V]; with `labels` [B, T] (as `input_ids`, -100 does not count) their mean loss too."""
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("padded batches are not supported: give rows of one length, or one row at a time")
        logits = self.retro(input_ids, neighbor_ids, neighbor_lengths, first_chunk=first_chunk)
        loss = None if labels is None else next_token_loss(logits[:, :-1], labels[:, 1:])
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        neighbor_ids: Tensor | None = None,
        **unused: Any,
    ) -> dict[str, Any]:
        """All tokens so far: there is no cache."""
        if neighbor_ids is not None:
            raise ValueError("generate() runs without retrieval (OFF); `openbook serve generator` writes with it")
        return {"input_ids": input_ids, "attention_mask": attention_mask}
