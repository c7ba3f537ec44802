"""Names that no one has, so that a model can only know them from the passage that it reads.

A new name is made up of syllables, joined of halves of real ones, another real one, or, seldom, stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

_CLUSTERS = ("ch", "kh", "qu", "sh", "st", "th", "tr", "br", "dr", "gr", "kr", "ly", "ny", "zh")
_ONSETS = (*"bdfghjklmnprstvwyz", *"bdgklmnrst", *_CLUSTERS)
_NUCLEI = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "au", "ei", "ou", "ia")
_CODAS = ("", "", "", "", "n", "r", "l", "s", "m", "k", "t", "nd", "rk", "sh", "ng")
_KEPT = re.compile(r"[a-z]|I+$|[A-Z]\.$")  # "bin", "of", "II", "H."
_YEAR = re.compile(r"((?:19|20)\d\d)(?!\d)")
_KINDS, _WEIGHTS = ("made", "joined", "real", "own"), (35, 40, 15, 10)


@dataclass(frozen=True)
class Names:
    """Makes names like those in `pool`, real ones that may be used again."""

    pool: Sequence[str]

    def new(self, random: Random, own: str) -> str:
        """A name for what is called `own`; words such as "bin" and "of the" stay."""
        (kind,) = random.choices(_KINDS, _WEIGHTS)
        if kind == "own":
            return own
        pattern = random.choice(self.pool)
        if kind == "real":
            return pattern
        return " ".join(word if _KEPT.match(word) else self._word(random, word, kind) for word in pattern.split())

    def like(self, random: Random, name: str) -> str:
        """Another name that shares words with this one: to be taken for it by who does not read it all."""
        words = name.split()
        changed = random.randrange(len(words))
        if len(words) == 1 or random.random() < 0.3:
            return f"{random.choice(('North', 'South', 'New', 'East', 'West', 'Saint'))} {name}"
        words[changed] = self._word(random, words[changed], random.choice(("made", "joined")))
        return " ".join(words)

    def _word(self, random: Random, like: str, kind: str) -> str:
        if kind == "made":
            word = "".join(
                random.choice(_ONSETS) + random.choice(_NUCLEI) + random.choice(_CODAS)
                for _ in range(random.choice((1, 2, 2, 2, 3)))
            )
        else:
            first, second = (random.choice(random.choice(self.pool).split()) for _ in range(2))
            word = first[: (len(first) + 1) // 2] + second[len(second) // 2 :]
        return word.upper() if len(like) > 1 and like.isupper() else word[:1].upper() + word[1:].lower()


def new_digits(random: Random, text: str) -> str:
    """`text` with other digits, but for years; a leading digit that is not 0 does not become 0."""
    pieces = _YEAR.split(text)
    for place in range(0, len(pieces), 2):
        pieces[place] = re.sub(
            r"(?<!\d)([1-9])|\d", lambda found: str(random.randint(1 if found[1] else 0, 9)), pieces[place]
        )
    return "".join(pieces)
