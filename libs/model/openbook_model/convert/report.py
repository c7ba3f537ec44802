"""Filling a model from foreign tensors, and the report that accounts for every one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from openbook_core.errors import InputError
from openbook_model.finite import is_finite
from openbook_model.initialisation import initialise
from openbook_model.model import RetroModel


@dataclass(frozen=True)
class ConversionReport:
    """Names of parameters: `loaded` and `new` (freshly initialised) are ours; `unexpected` (without a place in the
    network, left out because the caller allowed it) and `ignored` (known to hold nothing: caches, empty states) are the
    source's. `notes`: what else a reader should know."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def render(self) -> str:
        """For people: every number, and the names of what was not simply loaded."""
        lines = []
        for title, names in asdict(self).items():
            lines.append(f"{title}: {len(names)}")
            lines += [f"  {name}" for name in names if title in ("new", "unexpected", "notes")]
        return "\n".join(lines)

    def record(self) -> dict[str, list[str]]:
        """All names, for JSON."""
        return {title: list(names) for title, names in asdict(self).items()}


@torch.no_grad()
def fill(
    model: RetroModel,
    tensors: Mapping[str, Tensor],
    *,
    unexpected: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
    may_be_new: frozenset[str] = frozenset(),
    allow_unexpected: bool = False,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> ConversionReport:
    """Copy `tensors` (our names) into `model`, cast to its dtype; initialise those missing ones that may be new.

    Each tensor is asked for once, one after the other; asking may add to `notes`.
    Raises InputError for a source tensor without a place (unless `allow_unexpected`), a missing one, another shape, or
    a value that is not finite.
    """
    parameters = dict(model.named_parameters())
    unexpected += tuple(name for name in tensors if name not in parameters)
    if unexpected and not allow_unexpected:
        raise InputError(
            f"{len(unexpected)} tensors of the source have no place in this architecture: {_some(unexpected)}. "
            "It is another architecture, or has parts that are not supported; --allow-unexpected leaves them out",
            field="source",
        )
    new = frozenset(parameters.keys() - tensors.keys())
    if new - may_be_new:
        missing = tuple(sorted(new - may_be_new))
        raise InputError(f"{len(missing)} tensors are missing from the source: {_some(missing)}", field="source")
    loaded = sorted(parameters.keys() & tensors.keys())
    for name in loaded:
        parameter, tensor = parameters[name], tensors[name]
        if tensor.shape != parameter.shape:
            raise InputError(
                f"{name} has shape {list(tensor.shape)}; the configuration asks for {list(parameter.shape)}",
                field="source",
            )
        if not is_finite(tensor):
            raise InputError(f"{name} holds NaN or infinite values", field="source")
        parameter.copy_(tensor)
    initialise(model, seed, only=new)
    return ConversionReport(
        tuple(loaded), tuple(sorted(new)), tuple(sorted(unexpected)), tuple(sorted(ignored)), tuple(notes)
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The one type of all tensors, float32 where there are several or an unusual one."""
    kinds = {tensor.dtype for tensor in tensors.values()}
    return kinds.pop() if len(kinds) == 1 and kinds <= {torch.bfloat16, torch.float16} else torch.float32
