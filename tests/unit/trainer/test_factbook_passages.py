"""Lines to passages that fit into a chunk, questions to the part of a line that answers them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbook_database.testing import tiny_tokenizer
from openbook_trainer.factbook.passages import Line, counter, cut, edition_lines, lines_of
from openbook_trainer.factbook.questions import asked, database_rows, locate, of_part, place_of
from openbook_trainer.parts import is_of_part

EXAMPLES = Path(__file__).parents[3] / "examples" / "factbook"
OLD, NEW = "2015-11-18", "2026-02-19"
TOKENIZER = tiny_tokenizer()
WORDS = st.text(alphabet="abc1.é(", min_size=1, max_size=12)
PARTS = st.lists(st.lists(WORDS, min_size=1, max_size=9).map(" ".join), min_size=1, max_size=9)


def test_a_line_is_its_country_field_and_parts() -> None:
    text = (
        "# Canada\n\n## Canada: Government\nCanada - Capital: name: Ottawa; note: cold ++ 45 25 N\nUtterly - Other: x"
    )
    assert list(lines_of("Canada", text)) == [Line("Canada", "Capital", ("name: Ottawa", "note: cold", "45 25 N"))]


def test_passages_take_as_many_parts_as_fit_and_repeat_the_title() -> None:
    line = Line("Canada", "Capital", ("name: Ottawa", "note: cold", "a part of very many words indeed"))
    assert cut(line, lambda text: len(text.split()), 9) == [
        "Capital of Canada: name: Ottawa; note: cold",
        "Capital of Canada: a part of very many words",
        "Capital of Canada: indeed",
    ]


@given(parts=PARTS, limit=st.integers(45, 80))
def test_passages_fit_into_a_chunk_and_lose_no_word_that_fits(parts: list[str], limit: int) -> None:
    line, count = Line("Côte", "Field", tuple(parts)), counter(TOKENIZER)
    passages = cut(line, count, limit)
    assert all(count(passage) <= limit for passage in passages)
    assert all(passage.startswith("Field of Côte: ") for passage in passages)
    kept = " ".join(passage.removeprefix("Field of Côte:") for passage in passages).replace(";", "").split()
    assert kept == " ".join(parts).split()


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("39", "male: 39.1 years; total: 39 years", (25, 27)),
        ("4.3%", "was -4.3%, is 4.3%", (14, 18)),
        ("Al", "Alma, Al", (6, 8)),
        (".ca", "code .ca; .cat", (5, 8)),
        ("9", "19 or 9,000", None),
    ],
)
def test_an_answer_is_found_as_a_whole_word_or_number(answer: str, text: str, found: tuple[int, int] | None) -> None:
    assert place_of(answer, text) == found


def test_people_are_looked_for_in_the_part_of_their_office() -> None:
    lines = (Line("X", "Executive branch", ("chief of state: King A", "head of government: King A")),)
    assert locate(lines, "head of government", "King A") == (lines[0], 1)
    assert locate(lines, "head of government", "King B") is None


def test_the_book_answers_all_questions_about_people_but_few() -> None:
    """Of the real editions; the other side's answers are looked for in vain."""
    people = EXAMPLES / f"people_{OLD}_{NEW}.jsonl.zst"
    for side, edition in (("old", OLD), ("new", NEW)):
        lines = edition_lines(EXAMPLES / f"{edition}.jsonl.zst")
        rows = list(asked(people, side, lines, "all"))
        assert len(rows) >= 368
        assert all(place_of(row.answer, row.line.parts[row.part]) for row in rows)
        wrong = [row for row in rows if any(place_of(name, row.line.parts[row.part]) for name in row.other)]
        assert len(wrong) < 0.1 * len(rows)


def test_the_third_of_the_tests_is_that_of_the_other_tasks_and_validation_is_of_the_training_part() -> None:
    names = [f"country {number}" for number in range(300)]
    parts = {part: {name for name in names if of_part(name, part)} for part in ("train", "validation", "test")}
    assert parts["test"] == {name for name in names if is_of_part(name, "test")}
    assert parts["train"].isdisjoint(parts["validation"])
    assert parts["train"] | parts["validation"] == {name for name in names if is_of_part(name, "train")}
    assert 15 < len(parts["validation"]) < 40


def test_a_database_row_is_one_passage_in_one_chunk_of_a_line_that_is_asked_for() -> None:
    capital, area = Line("Canada", "Capital", ("name: Ottawa", "note: cold " * 9)), Line("Canada", "Area", ("1 km",))
    rows = list(database_rows({"d": (capital, area, Line("Canada", "Birth rate", ("10.28",)))}, TOKENIZER, 40))
    assert [row["id"] for row in rows] == [f"d/{number:04d}" for number in range(len(rows))]
    assert all(len(TOKENIZER.encode(row["text"])) <= 40 for row in rows)
    assert {row["text"].split(" of ")[0] for row in rows} == {"Capital", "Birth rate"}
