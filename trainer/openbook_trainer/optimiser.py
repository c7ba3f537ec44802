"""What changes the weights: AdamW, Muon beside it, their average over the steps, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from openbook_trainer.config import OptimiserConfig
from openbook_trainer.muon import Muon

Optimisers = tuple[torch.optim.Optimizer, ...]
AVERAGE = "average"
_FUSED_ON = ("cpu", "cuda")


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Rate of step number `step` (from 0) of `steps`.

    Linear warm-up to `learning_rate`; then a cosine to `final_fraction` of it at the last step ("cosine"), or the peak
    until the last `decay_fraction` of the steps, in which it falls in a straight line to that ("wsd": warm-up, stable,
    decay).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        progress = min(1.0, (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps))
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        falling = min(max(1, round(config.decay_fraction * steps)), steps - config.warmup_steps)
        left = min(1.0, max(0, steps - 1 - step) / falling)
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * left)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon is for it: a matrix from states to states; not an embedding, nor the output layer."""
    return parameter.dim() == 2 and "embedding" not in name and not name.startswith("head.")


def make_optimisers(
    model: nn.Module,
    config: OptimiserConfig,
    rate_scale: Mapping[str, float] | None = None,
    *,
    bfloat16: bool = True,
) -> Optimisers:
    """AdamW for all parameters that are trained, or Muon for the hidden matrices and AdamW for the rest.

    A group's rate is that of `learning_rate` times its `rate_scale`: by name in the argument, and for Muon
    `muon_learning_rate` over `learning_rate` besides. Muon's updates have the size of AdamW's ("match_rms_adamw",
    arXiv 2502.16982). AdamW decays matrices only: norms, biases and gates are left alone. The state is there from the
    start, so a checkpoint before the first step is one like any other.

    Muon is torch's own, which orthogonalises in bfloat16; without `bfloat16` the same in float32 (`muon.Muon`), for
    processors on which the former takes longer than all the rest of a step.
    """
    groups: dict[bool, dict[tuple[float, float], list[nn.Parameter]]] = {False: {}, True: {}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_muon = config.kind == "muon" and is_hidden_matrix(name, parameter)
            scale = (rate_scale or {}).get(name, 1.0)
            if by_muon:
                scale *= (config.muon_learning_rate or config.learning_rate) / config.learning_rate
            decay = config.weight_decay if parameter.dim() >= 2 else 0.0
            groups[by_muon].setdefault((scale, decay), []).append(parameter)

    def listed(by_muon: bool) -> list[dict[str, Any]]:
        return [
            {"params": parameters, "weight_decay": decay, "rate_scale": scale, "lr": config.learning_rate * scale}
            for (scale, decay), parameters in groups[by_muon].items()
        ]

    made: list[torch.optim.Optimizer] = []
    if groups[True]:
        if bfloat16:
            made.append(torch.optim.Muon(listed(True), momentum=config.muon_momentum, adjust_lr_fn="match_rms_adamw"))
        else:
            made.append(Muon(listed(True), config.learning_rate, config.muon_momentum))
    if groups[False]:
        fused = all(p.device.type in _FUSED_ON for parameters in groups[False].values() for p in parameters)
        made.append(torch.optim.AdamW(listed(False), betas=(config.beta1, config.beta2), fused=fused))
    for optimiser in made:
        _begin(optimiser, config.average_decay)
    return tuple(made)


def begin_step(optimisers: Optimisers, rate: float) -> None:
    """No gradients, and each group's rate for a step whose `learning_rate` is `rate`."""
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["rate_scale"]


def average_of(optimisers: Optimisers, model: nn.Module) -> dict[str, torch.Tensor]:
    """By name, the averaged weights of the parameters that are trained; empty where no average is kept."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: state[AVERAGE]
        for optimiser in optimisers
        for parameter, state in optimiser.state.items()
        if AVERAGE in state
    }


def _begin(optimiser: torch.optim.Optimizer, average_decay: float | None) -> None:
    """Give every parameter the state that torch would give it at the first step, and its average (EMA).

    The average is part of the optimiser's state, so it is sharded, saved and resumed with it.
    """
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            state = optimiser.state[parameter]
            if isinstance(optimiser, (torch.optim.Muon, Muon)):
                state["momentum_buffer"] = torch.zeros_like(parameter)
            else:
                place = parameter.device if group["fused"] else None
                state["step"] = torch.zeros((), dtype=torch.float32, device=place)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            if average_decay is not None:
                state[AVERAGE] = parameter.detach().clone()

    @torch.no_grad()
    def average(stepped: torch.optim.Optimizer, *_: Any) -> None:
        assert average_decay is not None
        for parameter, state in stepped.state.items():
            state[AVERAGE].lerp_(parameter, 1 - average_decay)

    if average_decay is not None:
        optimiser.register_step_post_hook(average)
