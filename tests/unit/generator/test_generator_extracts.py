"""Which lines of the passages are put before the model, and how an answer begins."""

import pytest

from openbook_prompt.extracts import choose_extracts
from openbook_prompt.passage import Extract, Passage
from openbook_prompt.recipe import build_messages, choose_shown, lead_in
from openbook_prompt.settings import PromptSettings

SETTINGS = PromptSettings()


def passage(
    chunk_id: int, text: str, *, title: str = "Ruritania", continuation: str = "", document: str = ""
) -> Passage:
    return Passage(chunk_id, document or title, title, "", "", 0.5, text, continuation)


def test_the_labelled_line_about_the_asked_country_wins() -> None:
    passages = [
        passage(9, "Graustark: capital: name: Edelweiss; population: 9", title="Graustark"),
        passage(4, "Ruritania - Climate: mild\nRuritania - Capital: Strelsau\nRuritania - Coast: none"),
    ]
    assert choose_extracts("What is the capital of Ruritania?", passages, SETTINGS) == [
        Extract("Ruritania - Capital: Strelsau", (4,), (1,))
    ]


def test_a_sentence_cut_by_a_chunk_border_is_joined_and_names_both_chunks() -> None:
    passages = [
        passage(8, " Rudolf ELPHBERG since 2001; legislature: none"),
        passage(7, "budget: small; head of the museum: Professor Anna"),
        passage(3, "unrelated"),
    ]
    (extract,) = choose_extracts("Who is the head of the museum of Ruritania?", passages, SETTINGS)
    assert extract == Extract(
        "Ruritania: head of the museum: Professor Anna Rudolf ELPHBERG since 2001", (7, 8), (1, 0)
    )


def test_a_line_of_a_continuation_names_the_chunk_that_follows() -> None:
    passages = [passage(7, "budget: small;", continuation=" head of the museum: Anna; coast: none")]
    (extract,) = choose_extracts("Who is the head of the museum of Ruritania?", passages, SETTINGS)
    assert extract == Extract("Ruritania: head of the museum: Anna", (8,), (0,))


def test_chunks_that_only_neighbour_by_id_are_not_joined_across_documents() -> None:
    passages = [passage(8, "second", title="B"), passage(7, "the head of the museum: Anna", title="A")]
    (extract,) = choose_extracts("Who is the head of the museum of A?", passages, SETTINGS)
    assert extract == Extract("A: the head of the museum: Anna", (7,), (1,))


def test_a_long_line_is_cut_and_does_not_name_chunks_of_which_nothing_is_shown() -> None:
    passages = [passage(1, "the head of the museum: " + "a " * 20), passage(2, "b " * 20)]
    (extract,) = choose_extracts("Who is the head of the museum?", passages, PromptSettings(extract_words=8))
    assert extract == Extract("Ruritania: the head of the museum: a a a", (1,), (0,))


def test_equal_segments_are_shown_once_and_the_number_is_kept() -> None:
    passages = [passage(1, "coast: none\nsea: none"), passage(5, "coast: none")]
    shown = choose_extracts("Is there a coast?", passages, PromptSettings(extracts=3))
    assert [extract.text for extract in shown] == ["Ruritania: coast: none", "Ruritania: sea: none"]


def test_no_extracts_shows_whole_passages() -> None:
    passages = [passage(1, "one\n two", continuation=" three four"), passage(5, "five")]
    settings = PromptSettings(extracts=0, continuation_characters=6)
    assert choose_shown("x", passages, settings) == [
        Extract("Ruritania: one two three", (1, 2), (0,)),
        Extract("Ruritania: five", (5,), (1,)),
    ]


@pytest.mark.parametrize(
    ("question", "beginning"),
    [
        ("Who is the head of government of Canada?", "The head of government of Canada is"),
        ("What are the colours of the flag?", "The colours of the flag are"),
        ("Name the king", ""),
        ("What is the capital of France? Answer in JSON.", ""),
        ("What was wrong with my code?\n```x = 1```", ""),
        ("Who is it\nreally?", ""),
        ("who is", ""),
        ("", ""),
    ],
)
def test_the_answer_begins_with_the_asked_thing(question: str, beginning: str) -> None:
    assert lead_in(question, SETTINGS) == beginning
    assert lead_in(question, PromptSettings(lead_in=False)) == ""


def test_spans_point_at_the_extracts_in_the_message() -> None:
    (message,) = build_messages("why?", ["best", "second"], SETTINGS)
    assert {rank: message.content[start:end] for rank, start, end in message.passages} == {0: "best", 1: "second"}
