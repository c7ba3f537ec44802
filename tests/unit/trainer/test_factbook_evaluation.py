"""What is counted of a model's answers about the Factbook."""

import dataclasses
from pathlib import Path

import pytest
import torch
from factbook_support import write_factbook

from openbook_core.tokenizer import Tokenizer
from openbook_model import EncoderConfig, Neighbors, RetroConfig, RetroModel, initialise
from openbook_trainer.factbook.evaluation import Asker, live_report, oracle_report
from openbook_trainer.factbook.passages import edition_lines
from openbook_trainer.factbook.questions import asked
from openbook_trainer.factbook.source import EDITIONS, LAST, Factbook, FactbookSettings
from openbook_trainer.recall.batches import neighbor_rows

LIMIT = 120


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer, RetroModel]:
    folder = write_factbook(tmp_path_factory.mktemp("factbook"))
    tokenizer = Factbook.make(FactbookSettings(folder=folder, vocab_size=500), 0).tokenizer
    encoder = EncoderConfig(hidden_size=16, num_heads=2, num_layers=1)
    model = RetroModel(
        RetroConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            chunk_length=LIMIT,
            cross_attention_layers=(2,),
            encoder=encoder,
        )
    )
    initialise(model, 0)
    return folder, tokenizer, model.eval()


def asker(data: tuple[Path, Tokenizer, RetroModel], side: str) -> Asker:
    folder, tokenizer, model = data
    edition = EDITIONS[0] if side == "old" else LAST
    lines = edition_lines(folder / f"{edition}.jsonl.zst")
    rows = list(asked(folder / f"qa_{EDITIONS[0]}_{LAST}.jsonl.zst", side, lines, "test"))
    return Asker(model, tokenizer, rows)


def test_old_answers_under_the_new_book_are_stale_and_right_ones_exact(
    data: tuple[Path, Tokenizer, RetroModel],
) -> None:
    new, old = asker(data, "new"), {row.id: row.answer for row in asker(data, "old").rows}
    perfect = new.score([row.answer for row in new.rows])
    outdated = new.score([old[row.id] for row in new.rows])
    assert perfect["people"]["exact"] == perfect["people"]["right"] == perfect["capital"]["exact"] == 1.0
    assert perfect["people"]["stale"] == 0.0
    assert outdated["people"]["stale"] == 1.0
    assert outdated["people"]["exact"] == outdated["people"]["right"] == 0.0
    assert outdated["capital"]["exact"] == 1.0  # it did not change
    assert "stale" not in outdated["capital"]
    assert perfect["people"]["questions"] == perfect["people"]["changed"] > 2


def test_the_given_passages_hold_the_answer_once(data: tuple[Path, Tokenizer, RetroModel]) -> None:
    some, decode = asker(data, "new"), data[1].decode
    assert some.parted.total() == 0
    for row, (one,), two in zip(some.rows, some.given(1), some.given(2), strict=True):
        assert row.answer in decode(one)
        assert sum(row.answer in decode(passage) for passage in two) == 1
        assert sum(f" of {row.country}:" in decode(passage) for passage in two) == 1
        assert all(len(passage) <= LIMIT for passage in two)


def test_a_question_whose_answer_a_cut_has_parted_counts_against_all(
    data: tuple[Path, Tokenizer, RetroModel],
) -> None:
    folder, tokenizer, model = data
    lines = edition_lines(folder / f"{LAST}.jsonl.zst")
    rows = list(asked(folder / f"qa_{EDITIONS[0]}_{LAST}.jsonl.zst", "new", lines, "test"))
    people = [row for row in rows if row.group == "people"]
    gone = dataclasses.replace(people[0], id="gone", answer="nowhere to be found")
    some = Asker(model, tokenizer, [*rows, gone])
    assert len(some.rows) == len(rows) and some.parted == {"people": 1}
    perfect = some.score([row.answer for row in some.rows])["people"]
    assert perfect["exact"] == 1.0 and perfect["parted"] == 1
    assert perfect["exact_of_all"] == len(people) / (len(people) + 1)


def test_the_reports_ask_the_model_with_and_without_passages(data: tuple[Path, Tokenizer, RetroModel]) -> None:
    """Weights of chance answer nothing right; what is found is counted all the same."""
    some = asker(data, "new")
    report = oracle_report(some)
    assert all(report[how]["people"]["exact"] == 0.0 for how in ("k1", "k2", "none", "shuffled"))
    two, wrong = some.given(2), some.given(2)
    half = len(wrong) // 2
    wrong[:half] = [[[1, 2, 3]]] * half
    for passages, share in ((two, 1.0), (wrong, 1 - half / len(wrong))):
        asked_so_far = iter(passages)

        def find(texts: list[str], rest=asked_so_far) -> Neighbors:  # type: ignore[no-untyped-def]
            with torch.no_grad():
                return Neighbors(*neighbor_rows([next(rest) for _ in texts]))

        found = live_report(some, find)
        total = sum(each["questions"] * each["right_found"] for each in found.values())
        assert total / len(passages) == pytest.approx(share)
