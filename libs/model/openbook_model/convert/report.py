"""Filling a model from foreign tensors, and the report that accounts for every one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openbook_core.errors import InputError
from openbook_model.finite import is_finite
from openbook_model.initialisation import initialise
from openbook_model.model import RetroModel


@dataclass(frozen=True)
class ConversionReport:
    """Names of parameters: `loaded` and `new` (freshly initialised) are ours, `ignored` the source's, known to hold
    nothing (caches, empty states)."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    ignored: tuple[str, ...]

    def render(self) -> str:
        parts = (("loaded", self.loaded), ("new", self.new), ("ignored", self.ignored))
        return "\n".join(f"{title}: {len(names)}" + "".join(f"\n  {name}" for name in names) for title, names in parts)


@torch.no_grad()
def fill(
    model: RetroModel,
    tensors: Mapping[str, Tensor],
    *,
    unexpected: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
    may_be_new: frozenset[str] = frozenset(),
    seed: int = 0,
) -> ConversionReport:
    """Copy `tensors` (our names) into `model`, cast to its dtype; initialise those missing ones that may be new.

    Raises InputError for a source tensor without a place, a missing one, another shape, or a value that is not finite.
    """
    parameters = dict(model.named_parameters())
    unexpected += tuple(name for name in tensors if name not in parameters)
    if unexpected:
        raise InputError(
            f"{len(unexpected)} tensors of the source have no place in this architecture: {_some(unexpected)}. "
            "It is another architecture, or has parts that are not supported",
            field="source",
        )
    new = frozenset(parameters.keys() - tensors.keys())
    if new - may_be_new:
        missing = tuple(sorted(new - may_be_new))
        raise InputError(f"{len(missing)} tensors are missing from the source: {_some(missing)}", field="source")
    for name, tensor in tensors.items():
        parameter = parameters[name]
        if tensor.shape != parameter.shape:
            raise InputError(
                f"{name} has shape {list(tensor.shape)}; the configuration asks for {list(parameter.shape)}",
                field="source",
            )
        if not is_finite(tensor):
            raise InputError(f"{name} holds NaN or infinite values", field="source")
        parameter.copy_(tensor)
    initialise(model, seed, only=new)
    return ConversionReport(tuple(sorted(tensors)), tuple(sorted(new)), tuple(sorted(ignored)))


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
