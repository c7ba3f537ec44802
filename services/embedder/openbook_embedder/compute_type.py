"""Whether bfloat16 is served where no type is named: only where it is clearly faster and finds the same.

Axes: N texts, D elements of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from openbook_core.probes import PROBE_TEXTS, lowest_cosine
from openbook_embedder.exported import MIN_OVERLAP, MIN_PROBE_COSINE
from openbook_embedder.recall import TOP, top_overlap

# So much faster that noise in the timing does not change the choice.
WORTHWHILE_SPEEDUP = 1.3
# Passages at hand everywhere: the probe texts, and pairs of them, which lie as close as chunks of one page do.
PASSAGES = (
    *PROBE_TEXTS,
    *(
        f"{text} {PROBE_TEXTS[(place + step) % len(PROBE_TEXTS)]}"
        for step in (1, 5)
        for place, text in enumerate(PROBE_TEXTS)
    ),
)

# Texts to their vectors [N, D] in float32 and in bfloat16.
Both = Callable[[Sequence[str]], Sequence[NDArray[np.float32]]]


def judge_bfloat16(exact_s: float, reduced_s: float, both: Both) -> tuple[bool, str]:
    """Whether it is taken, and the figures of every gate up to the one that it fails.

    The gates are its speed (seconds of the same work in float32 and in bfloat16), the cosines on the probe texts (design,
    section 2), and how many of the 10 nearest among PASSAGES stay so. The dearest comes last.
    """
    said = f"float32 {exact_s * 1000:.1f} ms, bfloat16 {reduced_s * 1000:.1f} ms"
    if exact_s < WORTHWHILE_SPEEDUP * reduced_s:
        return False, f"{said}; it takes {WORTHWHILE_SPEEDUP} times the speed"
    exact_ND, reduced_ND = both(PASSAGES)
    cosine = lowest_cosine(exact_ND[: len(PROBE_TEXTS)], reduced_ND[: len(PROBE_TEXTS)])
    said += f"; lowest cosine between them on the probe texts {cosine:.5f}"
    if not cosine >= MIN_PROBE_COSINE:
        return False, f"{said}, less than {MIN_PROBE_COSINE}"
    overlap = top_overlap(exact_ND, reduced_ND, TOP)
    said += f"; of the {TOP} nearest among {len(PASSAGES)} passages {overlap:.2%} stay"
    if not overlap >= MIN_OVERLAP:
        return False, f"{said}, less than {MIN_OVERLAP:.0%}"
    return True, said
