"""Which edition's answer a reply names."""

from __future__ import annotations

import pytest

from openbook_trainer.answers import names
from openbook_trainer.eval.editions import Verdict, judge, score_verdicts


@pytest.mark.parametrize(
    ("answer", "aliases", "found"),
    [
        ("It is Mark Carney.", ["mark carney"], True),
        ("Carneys", ["Carney"], False),
        ("(CARNEY)", ["Carney"], True),
        ("Mark", ["Mark Carney"], False),
        ("M. O'Neill (b. 1950)", ["M. O'Neill (b. 1950)"], True),
        ("It is 5.6% (2024).", ["5.6%"], True),
        ("There are 10,694,370.", ["10,694,370"], True),
        ("5.6%", ["6%"], False),
        ("3.24", ["3"], False),
        ("-0.12%", ["0.12%"], False),
        ("-0.12%", ["-0.12%"], True),
        ("King Willem-Alexander", ["Alexander"], True),
        ("Mark\nCARNEY", ["Mark Carney"], True),
        ("anything", ["", " "], False),
    ],
)
def test_an_alias_counts_as_whole_words(answer: str, aliases: list[str], found: bool) -> None:
    assert names(answer, aliases) is found


@pytest.mark.parametrize(
    ("answer", "right", "stale"),
    [
        ("It is Mark Carney.", True, False),
        ("Stephen Harper", False, True),
        ("Harper, then Carney", False, True),
        ("nobody", False, False),
    ],
)
def test_an_answer_that_names_both_editions_is_stale(answer: str, right: bool, stale: bool) -> None:
    assert judge(answer, ["Mark CARNEY", "CARNEY"], ["Stephen HARPER", "HARPER"]) == Verdict(right, stale)


def test_what_both_editions_say_is_never_stale() -> None:
    assert judge("Baku", ["Baku"], ["Baku"]) == Verdict(right=True, stale=False)
    served, other = ["Prime Minister Mike EMAN", "EMAN"], ["Michiel EMAN", "EMAN"]
    assert judge("Mike Eman", served, other) == Verdict(right=True, stale=False)
    assert judge("Michiel Eman", served, other) == Verdict(right=False, stale=True)


def test_fractions() -> None:
    figures = score_verdicts([Verdict(True, False), Verdict(True, False), Verdict(False, True), Verdict(False, False)])
    assert (figures["right"], figures["stale"]) == (0.5, 0.25)
    assert figures["right_interval"][0] <= 0.5 <= figures["right_interval"][1]
