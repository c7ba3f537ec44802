"""The generator of worlds against a reader that knows its sentences by their grammar alone."""

from __future__ import annotations

import itertools
import re
from random import Random

import pytest

from openbook_core.errors import ArgumentError
from openbook_trainer.recall.worlds import (
    BESIDE,
    SYLLABLES,
    Worlds,
    WorldsSettings,
    is_held_out,
    syllables_of,
    training_name,
)

SENTENCES = (
    r"The (?P<attribute>\w+) of (?P<name>\w+) is (?P<value>\w+)\.",
    r"(?P<name>\w+) has the (?P<attribute>\w+) (?P<value>\w+)\.",
    r"In (?P<name>\w+), the (?P<attribute>\w+) is (?P<value>\w+)\.",
    r"As its (?P<attribute>\w+), (?P<name>\w+) has (?P<value>\w+)\.",
)
PROMPTS = (r"What is the (?P<attribute>\w+) of (?P<name>\w+)\?", r"Which (?P<attribute>\w+) does (?P<name>\w+) have\?")
LEVELS = ((1, 20), (1, 32), (2, 64))


def facts_in(text: str) -> dict[tuple[str, str], str]:
    """Value by name and attribute."""
    found = (match for sentence in SENTENCES for match in re.finditer(sentence, text))
    return {(match["name"], match["attribute"]): match["value"] for match in found}


def asked_in(text: str) -> tuple[str, str]:
    (match,) = (match for prompt in PROMPTS if (match := re.fullmatch(prompt, text)))
    return match["name"], match["attribute"]


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return Worlds.make(WorldsSettings(), seed=0)


@pytest.mark.parametrize(("k", "r"), LEVELS)
def test_the_gold_passage_and_no_other_answers_the_question(worlds: Worlds, k: int, r: int) -> None:
    decode = worlds.tokenizer.decode
    places = set()
    for each in worlds.questions(Random(1), 200, k, r):
        name, attribute = asked_in(decode(each.prompt))
        texts = [decode(passage) for passage in each.passages]
        assert len(texts) == k and max(map(len, each.passages)) <= r
        assert f" {facts_in(texts[each.gold])[name, attribute]}" == decode(each.answer)
        others = [facts_in(text) for place, text in enumerate(texts) if place != each.gold]
        assert all((name, attribute) not in found for found in others)
        same = [f" {value}" for found in others for (_, other), value in found.items() if other == attribute]
        assert same == [decode(wrong) for wrong in each.wrong]
        places.add(each.gold)
    assert places == set(range(k))


def test_passages_are_whole_sentences_that_all_name_their_entity(worlds: Worlds) -> None:
    """As the databases' documents are: each fits into one chunk, so a neighbour is one of them."""
    decode, lengths = worlds.tokenizer.decode, set()
    for each in (each for seed in range(20) for each in worlds.questions(Random(seed), 10, 2, 64)):
        for text in map(decode, each.passages):
            facts = facts_in(text)
            assert len({name for name, _ in facts}) == 1
            assert len(facts) == text.count(".") and text.endswith(".")
            lengths.add(len(facts))
    books = worlds.books(Random(3), 60)
    rows = [row["text"] for document in books.documents for row in document]
    assert max(len(worlds.tokenizer.encode(text)) for text in rows) <= worlds.settings.passage_tokens
    assert {len(facts_in(text)) for text in rows} == lengths == {2, 3, 4}


def test_what_stands_beside_the_right_passage(worlds: Worlds) -> None:
    questions = worlds.questions(Random(4), 600, 2, 64)
    kinds = [each.beside[0] for each in questions]
    for kind, share in BESIDE.items():
        assert kinds.count(kind) / len(kinds) == pytest.approx(share, abs=0.07)
    for each in questions:
        (kind,) = each.beside
        (wrong,) = {name for name, _ in facts_in(worlds.tokenizer.decode(each.passages[1 - each.gold]))}
        name, _ = asked_in(worlds.tokenizer.decode(each.prompt))
        assert wrong != name
        assert kind == "other" or each.wrong
        pairs = zip(syllables_of(wrong), syllables_of(name), strict=True)
        assert kind != "alike" or sum(one == other for one, other in pairs) == 1


def test_tokens_are_those_that_the_tokenizer_gives_whole_texts(worlds: Worlds) -> None:
    """So a database that tokenises the documents holds the tokens that were trained on."""
    rows = worlds.books(Random(3), 40).documents[0]
    texts = [row["text"] for row in rows]
    assert all(worlds._ids(text) == worlds.tokenizer.encode(text).tolist() for text in texts)
    assert all(worlds.tokenizer.decode(worlds._ids(text)) == text for text in texts)
    assert len(worlds._ids("9085 12")) == 7  # single digits


def test_names_to_test_with_are_pairs_that_no_training_name_is(worlds: Worlds) -> None:
    pairs = {pair: is_held_out(*pair) for pair in itertools.product(SYLLABLES, repeat=2)}
    assert sum(pairs.values()) / len(pairs) == pytest.approx(0.1, abs=0.03)
    names = {(first + second).capitalize(): held for (first, second), held in pairs.items()}
    assert len(names) == len(pairs), "a name is one pair only"
    rng = Random(4)
    assert not any(names[training_name(rng)] for _ in range(2000))
    for first, second in worlds.held_out(Random(5), 50, 2, 64):
        asked, _ = asked_in(worlds.tokenizer.decode(first.prompt))
        passages = [worlds.tokenizer.decode(passage) for each in (first, second) for passage in each.passages]
        assert all(names[name] for name in (asked, *(name for text in passages for name, _ in facts_in(text))))
    with pytest.raises(ArgumentError, match="names to test with"):
        worlds.books(Random(0), 5000)


def test_further_questions_are_answered_by_the_same_passages(worlds: Worlds) -> None:
    decode, own = worlds.tokenizer.decode, 0
    for each in worlds.questions(Random(10), 50, 2, 64):
        facts = facts_in(" ".join(map(decode, each.passages)))
        assert len(each.more) == worlds.settings.questions - 1
        for prompt, answer in each.more:
            name, attribute = asked_in(decode(prompt))
            assert f" {facts[name, attribute]}" == decode(answer)
            own += name == asked_in(decode(each.prompt))[0]
    assert 0.2 < own / 150 < 0.6


def test_two_books_answer_one_prompt_differently(worlds: Worlds) -> None:
    for first, second in worlds.held_out(Random(6), 100, 2, 64):
        assert first.prompt == second.prompt
        assert first.answer != second.answer
    books = worlds.books(Random(7), 30)
    facts = [facts_in(" ".join(row["text"] for row in rows)) for rows in books.documents]
    assert len(books.questions) == 60
    for each in books.questions:
        asked = asked_in(each.question)
        assert [(found[asked],) for found in facts] == list(each.answers)
        assert each.answers[0] != each.answers[1]


def test_what_is_drawn_is_a_function_of_the_generator(worlds: Worlds) -> None:
    again = Worlds.make(WorldsSettings(), seed=0)
    assert again.digest == worlds.digest
    assert again.questions(Random(8), 20, 2, 64) == worlds.questions(Random(8), 20, 2, 64)
    assert again.questions(Random(9), 20, 2, 64) != worlds.questions(Random(8), 20, 2, 64)
    assert Worlds.make(WorldsSettings(facts=(1, 2)), seed=0).digest != worlds.digest
