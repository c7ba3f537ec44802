"""Readers of the tasks, records that go on, the ceiling, and batched answers against one forward pass per token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_support import save_tiny
from zstandard import ZstdCompressor

from openbook_core.errors import ArgumentError, ConflictError, CorruptError, InputError, NotFoundError
from openbook_core.tokenizer import Tokenizer
from openbook_model import Neighbors
from openbook_trainer.eval.editions import judge
from openbook_trainer.eval.tasks.decoding import Decoder
from openbook_trainer.eval.tasks.passages import contains_answer, is_readable
from openbook_trainer.eval.tasks.questions import find_task, read_documents, read_questions
from openbook_trainer.eval.tasks.records import Records, settle
from openbook_trainer.eval.tasks.table import plot, table_lines
from openbook_trainer.eval.tasks.task import Question
from openbook_trainer.sft.readers import READERS

SHIPPED = Path(__file__).parents[3] / "examples"


def write(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ZstdCompressor().compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def qed(number: int, paragraph: str, *answers: str) -> dict[str, Any]:
    spans = [[{"start": 0, "end": 1, "string": answer}] for answer in answers]
    row: dict[str, Any] = {"example_id": number, "title_text": "T", "question_text": f"who {number}"}
    return {**row, "paragraph_text": paragraph, "original_nq_answers": spans}


def test_squad(tmp_path: Path) -> None:
    asked = {"id": "q1", "question": " Who? ", "answers": [{"text": "Ann"}, {"text": "Ann"}, {"text": "Ann B"}]}
    article = {"title": "Some_Place", "paragraphs": [{"context": "Ann B was here.", "qas": [asked]}]}
    write(tmp_path / "squad/dev-v1.1.json.zst", {"version": "1.1", "data": [article]})
    (question,) = read_questions(find_task("squad"), tmp_path, None)
    assert (question.id, question.text, question.answers) == ("q1", "Who?", ("Ann", "Ann B"))
    (document,) = read_documents(find_task("squad"), tmp_path)
    assert (document.id, document.title, document.text) == (question.document, "Some Place", "Ann B was here.")


def test_questions_that_share_a_paragraph_share_its_document(tmp_path: Path) -> None:
    path = tmp_path / "nq/qed-part-a.jsonl.zst"
    write(path, qed(1, "one", "a", "b"), qed(2, "one", "c"), qed(3, "two", "d"))
    documents = read_documents(find_task("nq"), tmp_path)
    assert [each.text for each in documents] == ["one", "two"]
    questions = read_questions(find_task("nq"), tmp_path, None, [documents[0].id])
    assert {each.id: each.answers for each in questions} == {"1": ("a", "b"), "2": ("c",)}
    with pytest.raises(InputError, match="no question is about"):
        read_questions(find_task("nq"), tmp_path, None, ["another"])


def test_the_shipped_book_asks_only_clean_questions_of_the_new_edition() -> None:
    documents = read_documents(find_task("factbook"), SHIPPED)
    questions = read_questions(find_task("factbook"), SHIPPED, None, [each.id for each in documents])
    assert (len(documents), len(questions)) == (261, 218)
    assert all(question.document in {each.id for each in documents} for question in questions)
    assert read_questions(find_task("factbook"), SHIPPED, 10) == questions[:10]


def test_each_edition_has_its_own_answers_and_documents() -> None:
    new, old = (
        {each.id: each for each in read_questions(find_task(name), SHIPPED, None)}
        for name in ("factbook", "factbook@2015-11-18")
    )
    assert new.keys() == old.keys()
    assert all(new[each].answers == old[each].other_answers for each in new)
    assert all(old[each].answers == new[each].other_answers for each in new)
    canada = old["ca/head of government"]
    assert canada.answers[0].endswith("Justin TRUDEAU")
    documents = {each.id for each in read_documents(find_task("factbook@2015-11-18"), SHIPPED)}
    assert all(question.document in documents for question in old.values())
    assert find_task("factbook@2015-11-18").corpus != find_task("factbook").corpus == find_task("factbook-qa").corpus


def test_countries_are_those_of_tuning() -> None:
    train, test, every = (
        {each.id for each in read_questions(find_task("factbook", part), SHIPPED, None)}
        for part in ("train", "test", "all")
    )
    assert len(test) == 64
    assert train | test == every
    assert not train & test


def test_articles_are_those_of_tuning(tmp_path: Path) -> None:
    def article(number: int) -> dict[str, Any]:
        asked = {"id": f"q{number}", "question": f"Who {number}?", "answers": [{"text": "Ann"}]}
        return {"title": f"Some_Place_{number}", "paragraphs": [{"context": f"Ann, {number}.", "qas": [asked]}]}

    write(tmp_path / "squad/dev-v1.1.json.zst", {"version": "1.1", "data": [article(number) for number in range(9)]})
    for part in ("train", "test", "all"):
        asked = {each.text for each in read_questions(find_task("squad", part), tmp_path, None)}
        tuned = READERS["squad"](str(tmp_path / "squad/dev-v1.1.json.zst"), {"part": part})
        assert asked == {each.question for each in tuned}
        assert len(read_documents(find_task("squad", part), tmp_path)) == 9
    assert 0 < len(read_questions(find_task("squad", "test"), tmp_path, None)) < 9


def test_fields_leave_the_people_out(tmp_path: Path) -> None:
    row = {"country": "Aruba", "question": "?", "old_answer": "a", "new_answer": "b", "old_aliases": ["a", "A"]}
    row |= {"new_aliases": [], "old_doc": "1", "new_doc": "2"}
    fields = ("capital", "chief of state", "government type")
    rows = [{"id": field, "field": field, **row} for field in fields]
    write(tmp_path / "factbook/qa_2021-02-15_2026-02-19.jsonl.zst", *rows)
    (question,) = read_questions(find_task("factbook-fields@2021-02-15"), tmp_path, None)
    assert (question.id, question.answers, question.document) == ("capital", ("a", "A"), "1")
    assert question.other_answers == ("b",)
    assert len(read_questions(find_task("factbook-qa@2021-02-15"), tmp_path, None)) == 2


def test_an_edition_or_part_that_is_none() -> None:
    with pytest.raises(NotFoundError, match="no edition '2020-01-01'; there are 2015-11-18, 2021-02-15, 2026-02-19"):
        find_task("factbook@2020-01-01")
    with pytest.raises(ArgumentError, match="part 'some': expected all, train, test"):
        find_task("factbook", "some")
    with pytest.raises(ArgumentError, match="task nq-open is in no parts.* without --part"):
        find_task("nq-open", "test")
    with pytest.raises(NotFoundError, match="no task 'squad@1.1'"):
        find_task("squad@1.1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "x", "answer": ["a"]}, "line 1: has no field 'question'; its fields are query, answer"),
        ({"question": "x", "answer": []}, "line 1: has no answer"),
        ([1], "row 1: holds a JSON int, expected an object"),
        ({"question": "x", "answer": "a"}, "line 1: field 'answer' is a str, expected a list"),
        ({"question": None, "answer": ["a"]}, "line 1: has no text in field 'question'"),
    ],
)
def test_rows_of_another_form(tmp_path: Path, row: Any, message: str) -> None:
    write(tmp_path / "nq/NQ-open.dev.jsonl.zst", row)
    with pytest.raises(InputError, match=message):
        read_questions(find_task("nq-open"), tmp_path, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": ["Ann"]}, "question q1, answers 1: holds a JSON str, expected an object"),
        ({"answers": [{"answer": "Ann"}]}, "question q1: has no field 'text'; its fields are answer"),
        ({"answers": "Ann"}, "question q1: field 'answers' is a str, expected a list"),
        ({"answers": []}, "question q1: has no answer"),
        ({"question": 3}, "question q1: field 'question' is a int, expected text"),
    ],
)
def test_squad_of_another_form(tmp_path: Path, changes: Any, message: str) -> None:
    asked = {"id": "q1", "question": "Who?", "answers": [{"text": "Ann"}], **changes}
    article = {"title": "Place", "paragraphs": [{"context": "Ann was here.", "qas": [asked]}]}
    write(tmp_path / "squad/dev-v1.1.json.zst", {"data": [article]})
    with pytest.raises(InputError, match=f"Place, paragraph 0, {message}"):
        read_questions(find_task("squad"), tmp_path, None)


def test_qed_of_another_form(tmp_path: Path) -> None:
    write(tmp_path / "nq/qed-part-a.jsonl.zst", {**qed(1, "one"), "original_nq_answers": ["a"]})
    with pytest.raises(InputError, match=r"line 1: field 'original_nq_answers\.0' is a str, expected a list"):
        read_questions(find_task("nq"), tmp_path, None)


@pytest.mark.parametrize("name", ["id", "country", "field", "question", "new_doc", "new_answer", "old_aliases"])
@pytest.mark.parametrize("value", [None, 3])
def test_a_factbook_row_of_another_form(tmp_path: Path, name: str, value: Any) -> None:
    row = {"id": "aa", "country": "Aruba", "field": "capital", "question": "?", "old_aliases": [], "new_aliases": []}
    row |= {"old_answer": "a", "new_answer": "b", "old_doc": "1", "new_doc": "2", name: value}
    write(tmp_path / "factbook/qa_2015-11-18_2026-02-19.jsonl.zst", row)
    with pytest.raises(InputError, match=f"line 1: .*field '{name}'"):
        read_questions(find_task("factbook-qa"), tmp_path, None)


@pytest.mark.parametrize("name", ["id", "country", "text"])
def test_a_factbook_document_of_another_form(tmp_path: Path, name: str) -> None:
    write(
        tmp_path / "factbook/2026-02-19.jsonl.zst", {"id": "aa", "country": "Aruba", "text": "An island.", name: None}
    )
    with pytest.raises(InputError, match=f"line 1: has no text in field '{name}'"):
        read_documents(find_task("factbook"), tmp_path)


def test_an_unknown_task_names_the_known() -> None:
    with pytest.raises(NotFoundError, match="known are nq, nq-open, squad, factbook"):
        find_task("trivia")


def test_a_line_that_a_kill_cut_off_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Records(path).append([{"id": "1", "prediction": "é"}, {"id": "2", "prediction": "b"}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "3", "predic')
    records = Records(path)
    assert list(records.rows) == ["1", "2"]
    records.append([{"id": "3", "prediction": "c"}])
    assert path.read_bytes() == whole + b'{"id": "3", "prediction": "c"}\n'
    path.write_bytes(b"garbage\n" + whole)
    with pytest.raises(CorruptError, match="line 1"):
        Records(path)


def test_changed_settings_are_named(tmp_path: Path) -> None:
    settle(tmp_path / "task", {"k": 4, "limit": 10})
    settle(tmp_path / "task", {"k": 4, "limit": 10})
    with pytest.raises(ConflictError, match="k: 4 there, 2 now. Give"):
        settle(tmp_path / "task", {"k": 2, "limit": 10})


def test_an_answer_is_found_as_whole_words() -> None:
    assert contains_answer("In 1901, the Röntgen-rays ...", ["of it", "1901"])
    assert contains_answer("led by King CHARLES III (since 2022)", ["Charles III"])
    assert not contains_answer("the nineteen men", ["nine", "the"])


@pytest.mark.parametrize(
    ("text", "answer"), [("King WILLEM-ALEXANDER", "Alexander"), ("5.6% (2020 est.)", "6"), ("Mark\nCARNEY", "Carney")]
)
def test_the_ceiling_of_an_edition_goes_by_the_rule_of_right(text: str, answer: str) -> None:
    question = Question("1", "Who?", (answer,), other_answers=("nobody",))
    assert is_readable(question, text) is judge(text, question.answers, ("nobody",)).right
    assert is_readable(replace(question, other_answers=None), text) is contains_answer(text, question.answers)


def fake_neighbors(texts: list[str], k: int, length: int) -> Neighbors:
    """Neighbours that depend on the chunk's text, so that a wrong chunk shows."""
    rng = [np.random.default_rng(list(text.encode()) or [0]) for text in texts]
    ids = np.stack([each.integers(0, 256, (k, length)) for each in rng])
    return Neighbors(torch.from_numpy(ids), torch.full((len(texts), k), length))


@pytest.mark.parametrize("on", [False, True])
def test_a_batch_is_one_forward_pass_per_token(tmp_path: Path, on: bool) -> None:
    model = save_tiny(tmp_path / "model", max_positions=96)
    tokenizer = Tokenizer.load(tmp_path / "model")
    m, k = model.config.chunk_length, model.config.num_neighbors

    def find(texts: Any) -> Neighbors:
        return fake_neighbors(list(texts), k, 2 * m)

    prompts = [tokenizer.encode(text).tolist() for text in ("a", "river runs by", "x" * m, "where is it? " * 3)]
    decoder = Decoder(model, tokenizer, batch=4, max_context=96, find=find if on else None)
    got = decoder.answers(prompts, 20)
    assert got == decoder.answers(prompts, 20)
    assert not on or got != Decoder(model, tokenizer, batch=4, max_context=96).answers(prompts, 20)
    for prompt, reply in zip(prompts, got, strict=True):
        tokens, phase = list(prompt), (len(prompt) - 1) % m + 1
        for _ in range(20):
            ends = range(phase, len(tokens) + 1, m)
            ids = lengths = None
            if on:
                found = find([tokenizer.decode(tokens[max(0, end - m) : end], skip_special=True) for end in ends])
                assert found.lengths_LK is not None
                ids, lengths = found.ids_LKR[None], found.lengths_LK[None]
            with torch.no_grad():
                logits_BTV = model(torch.tensor([tokens]), ids, lengths, first_chunk=phase)
            token = int(logits_BTV[0, -1].argmax())
            if token == tokenizer.eos_id:
                break
            tokens.append(token)
        assert reply == tokenizer.decode(tokens[len(prompt) :], skip_special=True).strip()


def test_table_and_picture(tmp_path: Path) -> None:
    def side(value: float) -> dict[str, Any]:
        found = {"exact_match": value, "f1": value, "exact_match_interval": [0, 1], "f1_interval": [0, 1]}
        return {"count": 4, **found, "nvidia": {"f1": None}}

    ceiling = {"in_passages": 0.75, "in_shown": 0.5}
    with_book = {"snapshot": "s", "ceiling": ceiling, "sides": {"closed-book": side(0), "off": side(0.5), "on": None}}
    without = {"snapshot": None, "ceiling": None, "sides": {"closed-book": side(0.25), "off": None, "on": None}}
    chosen = ["closed-book", "off", "on"]
    figures = {"cross_attention": "off (gate 0)", "sides": chosen, "tasks": {"squad": with_book, "nq-open": without}}
    lines = list(table_lines(figures))
    assert len(lines) == 5
    assert "0.500 [0.000, 1.000]" in lines[2]
    assert "0.750" in lines[2]
    assert "off (gate 0)" in lines[3]
    assert list(table_lines({**figures, "sides": chosen[:2]})) == lines[:3] + lines[4:]
    assert "stale" not in lines[0]
    with_book["sides"]["off"] |= {"right": 0.75, "right_interval": [0.5, 1], "stale": 0.25, "stale_interval": [0, 0.5]}
    assert "0.250 [0.000, 0.500]" in list(table_lines(figures))[2]
    plot(figures, tmp_path / "a" / "tasks.png")
    assert (tmp_path / "a" / "tasks.png").read_bytes().startswith(b"\x89PNG")
