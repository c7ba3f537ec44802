"""What of a data set may be trained on, and what is kept to judge by: the same for tuning and for evaluation."""

from __future__ import annotations

from hashlib import sha256

PARTS = ("all", "train", "test")

# Of the factbook: the two fields of people, and the one that is asked by nobody. Extracted by rule, it is often only
# reworded from edition to edition.
PEOPLE = ("chief of state", "head of government")
LEFT_OUT = "government type"


def is_of_part(name: str, part: str) -> bool:
    """Whether what is called `name` is of that part of `PARTS`: "train" has two thirds of all names, by their hash.

    SQuAD is divided by the titles of its articles, the factbook by the names of its countries.
    """
    return part == "all" or (int(sha256(name.encode()).hexdigest(), 16) % 3 != 0) == (part == "train")
