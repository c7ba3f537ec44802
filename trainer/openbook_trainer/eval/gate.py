"""The gate: does a model use what it retrieves? Not if chance could have made ON better than OFF, or than shuffled."""

from __future__ import annotations

import math
from typing import Any

SIGMAS = 3
FEW = 20  # clusters below which a standard error is itself known to 16% or worse


def judge(on_minus_off: dict[str, Any], shuffled_minus_on: dict[str, Any], clusters: int, by: str) -> dict[str, Any]:
    """`passed`: ON < OFF and ON < shuffled, each by more than SIGMAS paired standard errors. `verdict` says it in plain
    words, `reasons` with numbers.

    Both differences are `nats_per_token` with its `_standard_error`, over `clusters` clusters of the kind `by` describes.
    """
    off_holds, off_reason = _holds("ON - OFF", on_minus_off, -1)
    shuffled_holds, shuffled_reason = _holds("shuffled - ON", shuffled_minus_on, 1)
    passed = off_holds and shuffled_holds
    verdict = "this model uses its neighbours" if passed else "this model does not use its neighbours"
    if clusters < 2:
        verdict = "one cluster has no standard error, so it cannot be shown that this model uses its neighbours"
    return {"passed": passed, "verdict": verdict, "reasons": [off_reason, shuffled_reason, *_cautions(clusters, by)]}


def closed(state: str) -> dict[str, Any]:
    """The gate of a model whose output no neighbour can change."""
    reason = f"cross_attention: {state}, so OFF, ON and shuffled are the same"
    return {"passed": False, "verdict": "this model does not use its neighbours", "reasons": [reason]}


def _holds(name: str, difference: dict[str, Any], sign: int) -> tuple[bool, str]:
    value, error = difference["nats_per_token"], difference["nats_per_token_standard_error"]
    if error is None:
        return False, f"{name} = {value:+.5f} nats per token, without a standard error"
    holds = bool(sign * value > SIGMAS * error)
    wanted = f"{'below' if sign < 0 else 'above'} {-SIGMAS if sign < 0 else SIGMAS} standard errors"
    times = f", {value / error:+.1f} standard errors" if error else ""
    return holds, f"{name} = {value:+.5f} ± {error:.5f} nats per token{times}: {'' if holds else 'not '}{wanted}"


def _cautions(clusters: int, by: str) -> list[str]:
    cautions = []
    if 2 <= clusters < FEW:
        cautions.append(
            f"few clusters ({clusters}): the standard errors are themselves known to about "
            f"{1 / math.sqrt(2 * (clusters - 1)):.0%} only; give more documents"
        )
    if by != "document":
        cautions.append("one document, whose blocks are related: the standard errors are rather too small")
    return cautions
