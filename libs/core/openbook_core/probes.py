"""The 32 texts by which two embedders are compared: cosine of at least 0.999 on each is needed to attach a database.

Short and long, several scripts, numbers, code, questions: another compute type keeps each cosine, another model,
pooling or a coarse quantisation does not. They are the ones that a snapshot's manifest records.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PROBE_TEXTS: tuple[str, ...] = (
    "Canada",
    "Who is the head of government of Canada?",
    "The capital of Angola is Luanda, on the coast of the Atlantic Ocean.",
    "42",
    "The total area is 1,246,700 sq km, of which 0 sq km is water.",
    "3.14159 26535 89793 23846",
    "An introduction to thermodynamics: heat, work and entropy",
    "Water boils at 100 degrees Celsius at sea level, and at a lower temperature on a mountain.",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "SELECT name, population FROM countries WHERE region = 'Africa' ORDER BY population DESC;",
    "import numpy as np; x = np.zeros((3, 4), dtype=np.float32)",
    "La République du Niger est un pays d'Afrique de l'Ouest.",
    "Die Geschwindigkeit des Lichts im Vakuum ist eine Naturkonstante.",
    "El presidente es elegido por voto popular para un mandato de cinco años.",
    "Россия — крупнейшая страна мира по площади.",
    "東京は日本の首都です。",
    "مرحبا بالعالم",
    "한국의 수도는 서울이다.",
    "## Government\nchief of state: the President; head of government: the Prime Minister",
    "# Angola: Economy",
    "it's, don't, we'll, they've: contractions",
    "ALL CAPITALS ARE SOMETIMES USED FOR SURNAMES, AS IN JOSE EDUARDO DOS SANTOS",
    "!?!? ... --- *** ###",
    "the the the the the the the the the the the the the the the the",
    "The mitochondrion is the organelle in which most of the cell's ATP is made.",
    "Supply and demand set the price of a good in a competitive market.",
    "He was elected in 2012 and re-elected in 2017; his term ended in 2022.",
    "Nobody came to the meeting.",
    "Everybody came to the meeting.",
    "A chunk of sixty-four tokens may begin in the middle of a sentence, and end in the middle of",
    "Call CreateFileW with GENERIC_READ; on failure it returns INVALID_HANDLE_VALUE, and GetLastError says why.",
    (
        "The treaty was signed by all parties after long negotiations. It entered into force a year later, when the "
        "last of them had deposited its instrument of ratification, and it has been amended twice since then to admit "
        "new members and to lengthen the periods that it grants for the reduction of tariffs on agricultural goods."
    ),
)


def cosines(left_ND: NDArray[Any], right_ND: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine [n] of each row of one with the same row of the other."""
    left, right = left_ND.astype(np.float64), right_ND.astype(np.float64)
    norms_N = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(axis=1) / norms_N)


def lowest_cosine(left_ND: NDArray[Any], right_ND: NDArray[Any]) -> float:
    """The lowest of `cosines`."""
    return float(cosines(left_ND, right_ND).min())
