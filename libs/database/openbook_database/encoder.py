"""What a build needs of an embedder, and the texts by which two embedders are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openbook_core.fingerprint import Fingerprint


class Encoder(Protocol):
    """Passages to vectors. The result for a list is a function of that list alone: no batching with other callers."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Architecture, weights, tokenizer, pooling, normalisation, prompts; not the compute type."""

    @property
    def dimension(self) -> int:
        """Elements of each vector (d)."""

    @property
    def max_tokens(self) -> int:
        """Longest passage in the encoder's own tokens; longer ones are cut."""

    @property
    def dtype(self) -> str:
        """Compute type, "float32" or "bfloat16"."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of n passages, in order."""


# Short and long, several scripts, numbers, code, questions: another dtype keeps each cosine at 0.999 or more, another
# model, pooling or a coarse quantisation does not.
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
