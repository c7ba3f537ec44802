"""Examples with names made up: each can be answered from its right passage, and from no other knowledge."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch
from factbook_support import COUNTRIES, write_factbook

from openbook_core.config import load_config
from openbook_core.tokenizer import Tokenizer
from openbook_model import RetroModel
from openbook_trainer.factbook.examples import Examples, person_of
from openbook_trainer.factbook.names import Names, new_digits
from openbook_trainer.factbook.passages import edition_lines
from openbook_trainer.factbook.questions import asked, of_part, place_of
from openbook_trainer.factbook.source import EDITIONS, Editions, Factbook, FactbookSettings
from openbook_trainer.recall.config import RecallConfig
from openbook_trainer.recall.run import run_recall

EXAMPLES = Path(__file__).parents[3] / "examples" / "factbook"
PEOPLE = ["Stephen HARPER", "KHALIFA bin Zayid Al-Nuhayyan", "ELIZABETH II", "Ralph E. GONSALVES"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Factbook:
    folder = write_factbook(tmp_path_factory.mktemp("factbook"))
    return Factbook.make(FactbookSettings(folder=folder, vocab_size=400, passage_tokens=100), 0)


def test_new_names_keep_the_form_and_are_seldom_the_old_ones() -> None:
    names, random = Names(PEOPLE), Random(0)
    made = [names.new(random, "Mark CARNEY") for _ in range(400)]
    assert 0.05 < made.count("Mark CARNEY") / 400 < 0.16
    assert 0.08 < sum(name in PEOPLE for name in made) / 400 < 0.25
    fresh = {name for name in made if name not in (*PEOPLE, "Mark CARNEY")}
    assert len(fresh) > 250
    assert any(" bin " in name for name in fresh)
    assert any(name.endswith(" II") for name in fresh)
    assert sum(word.isupper() for name in fresh for word in name.split()) >= len(fresh)


def test_a_name_that_is_alike_shares_words() -> None:
    names, random = Names(["Saint Lucia", "Chad"]), Random(0)
    for name in ("New Zealand", "Chad"):
        alike = {names.like(random, name) for _ in range(50)}
        assert name not in alike
        assert all(set(other.split()) & set(name.split()) for other in alike)


def test_digits_change_but_for_years_and_no_zero_comes_first() -> None:
    random = Random(0)
    text = "112,162 (July 2015 est.); 0.5%"
    made = {new_digits(random, text) for _ in range(50)}
    assert len(made) == 50
    assert all("(July 2015 est.)" in each and len(each) == len(text) for each in made)
    assert all(each[0] != "0" for each in made)


def parts_of(whole: list[int], part: list[int]) -> bool:
    return any(whole[start : start + len(part)] == part for start in range(len(whole)))


@pytest.mark.parametrize(("k", "r"), [(1, 50), (1, 100), (2, 100), (3, 80)])
def test_the_right_passage_answers_and_the_others_do_not(source: Factbook, k: int, r: int) -> None:
    """The oracle reads the tokens: the answer's stand in the right passage after the office's or field's name."""
    decode, other = source.tokenizer.decode, 0
    for question in source.questions(Random(7), 200, k, r):
        assert len(question.passages) == k
        assert all(0 < len(passage) <= r for passage in question.passages)
        assert parts_of(question.passages[question.gold], question.answer)
        asks, gold = decode(question.prompt), decode(question.passages[question.gold])
        country = asks.rstrip("?").rsplit(" of ", 1)[1]
        assert f" of {country.removeprefix('the ')}: " in gold
        for office in ("chief of state", "head of government"):
            if office in asks:
                assert f"{office}:{decode(question.answer)}" in gold
        for place, passage in enumerate(question.passages):
            text = decode(passage)
            if place != question.gold and f" of {country.removeprefix('the ')}: " not in text:
                other += 1
    assert (other > 50) == (k > 1)


def test_further_questions_are_answered_by_the_same_passages(source: Factbook) -> None:
    decode, others = source.tokenizer.decode, 0
    for question in source.questions(Random(8), 200, 2, 64):
        texts = [decode(passage) for passage in question.passages]
        assert len(question.more) == source.settings.questions - 1
        for prompt, answer in question.more:
            asks, said = decode(prompt).rstrip("?"), decode(answer)
            country = asks.rsplit(" of ", 1)[1].removeprefix("the ")
            (text,) = {text for text in texts if f" of {country}: " in text and said in text}
            for office in ("chief of state", "head of government"):
                assert office not in asks or f"{office}:{said}" in text
            others += prompt != question.prompt
    assert others > 100


def test_what_is_drawn_is_a_function_of_the_generator(source: Factbook, tmp_path: Path) -> None:
    again = Factbook.make(source.settings, 5)
    assert again.digest == source.digest
    assert again.questions(Random(3), 20, 2, 90) == source.questions(Random(3), 20, 2, 90)
    assert again.questions(Random(4), 20, 2, 90) != source.questions(Random(3), 20, 2, 90)


def test_names_are_made_anew_for_each_example(source: Factbook) -> None:
    questions = source.questions(Random(1), 300, 1, 100)
    answers = Counter(source.tokenizer.decode(each.answer) for each in questions)
    assert len(answers) > 220
    prompts = {source.tokenizer.decode(each.prompt) for each in questions}
    assert sum(any(f" {name}?" in prompt for name in COUNTRIES) for prompt in prompts) < 0.5 * len(prompts)


def test_no_country_of_the_test_or_validation_is_trained_on(source: Factbook) -> None:
    editions = Editions(source.settings.folder)
    trained = {line.country for lines in editions.documents("train") for line in lines}
    assert trained == {name for name in COUNTRIES if of_part(name, "train")}
    assert 0 < len(trained) < len(COUNTRIES)


def test_the_tokenizer_has_seen_the_training_countries_alone(tmp_path: Path) -> None:
    """Other words about a test country change no token."""
    folder = write_factbook(tmp_path)
    settings = FactbookSettings(folder=folder, vocab_size=400)
    before = Factbook.make(settings, 0).tokenizer.fingerprint
    file = folder / f"{EDITIONS[0]}.jsonl.zst"
    import zstandard

    text = zstandard.decompress(file.read_bytes()).decode()
    for name in (name for name in COUNTRIES if not of_part(name, "train")):
        text = text.replace(f"{name} - Population: ", f"{name} - Population: zzyyzzyy zzyyzzyy zzyyzzyy ")
    file.write_bytes(zstandard.compress(text.encode()))
    assert Factbook.make(settings, 0).tokenizer.fingerprint == before


def test_held_out_questions_are_of_validation_with_two_books(source: Factbook) -> None:
    pairs = source.held_out(Random(0), 12, 2, 128)
    decode = source.tokenizer.decode
    for first, second in pairs:
        assert first.prompt == second.prompt
        assert first.answer != second.answer
        assert of_part(decode(first.prompt).rstrip("?").split(" of ")[-1], "validation")
        for question in (first, second):
            assert parts_of(question.passages[question.gold], question.answer)
            assert not parts_of(question.passages[1 - question.gold], question.answer)


def test_every_passage_of_the_real_book_answers_its_question() -> None:
    """Of the people of 2015 with names made up, the countries of training."""
    lines = edition_lines(EXAMPLES / "2015-11-18.jsonl.zst")
    rows = list(asked(EXAMPLES / "people_2015-11-18_2026-02-19.jsonl.zst", "old", lines, "train"))
    assert len(rows) > 200
    assert all(row.answer == " ".join(filter(None, person_of(row))) for row in rows)
    examples = Examples(rows, list(lines.values()), lambda text: len(text) // 4 + 1)
    random = Random(0)
    for _ in range(500):
        drawn = examples.draw(random, 2, 64)
        office = "chief of state" if "chief of state" in drawn.question else "head of government"
        gold = drawn.passages[drawn.gold]
        assert f"{office}: {drawn.answer}" in gold or place_of(drawn.answer, gold[gold.index(f"{office}: ") :])


def test_the_shipped_configuration_trains_on_this_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of it on a small model, and of its size: at most 10 MB in bfloat16."""
    folder = tmp_path / "data" / "factbook"
    folder.mkdir(parents=True)
    write_factbook(folder)
    monkeypatch.setenv("OPENBOOK_DATA", str(tmp_path / "data"))
    file = EXAMPLES.parents[0] / "train" / "factbook-cross-attention.yaml"
    shipped, _ = load_config(RecallConfig, file)
    with torch.device("meta"):
        size = sum(each.numel() for each in RetroModel(shipped.model).parameters())
    assert 2 * size + 300_000 < 10_000_000
    small = ["out=" + str(tmp_path / "run"), "model.vocab_size=400", "source.vocab_size=400", "steps=2", "batch=2"]
    small += ["model.hidden_size=16", "model.encoder.hidden_size=16", "evaluation.final=2", "model.chunk_length=200"]
    small += ["source.passage_tokens=200", "model.max_positions=300", "optimiser.warmup_steps=1"]
    small += ["curriculum.levels=[{neighbors: 2, tokens: 100}]"]
    config, _ = load_config(RecallConfig, file, small)
    summary = run_recall(config)
    assert summary["steps"] == 2
    assert summary["held_out"]["matching"] == summary["held_out"]["none"] == 0.0
    assert Tokenizer.load(tmp_path / "run" / "model").vocab_size <= 400
