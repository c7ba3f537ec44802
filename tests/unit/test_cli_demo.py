"""The demo's own measurements: grading, latency windows, the outside checker; and the command line's errors."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openbook_cli.demo.checker import Checker
from openbook_cli.demo.column import KIND, NeighborChecker, column_figures, write_passages
from openbook_cli.demo.load import Call, Load, latency, percentile
from openbook_cli.demo.questions import Question, grade, load_questions
from openbook_core.tokenizer import Tokenizer
from openbook_database.snapshot import Snapshot
from openbook_database.testing import build_tiny_snapshot
from openbook_trainer.parts import is_of_part

EDITIONS = Path(__file__).parents[2] / "examples" / "factbook"


def question(old: str = "Stephen HARPER", new: str = "Mark CARNEY") -> Question:
    return Question("x", "Canada", "Who?", old, new, (old, old.split()[-1]), (new, new.split()[-1]))


def test_an_answer_that_names_both_counts_as_the_stale_one() -> None:
    questions = [question()] * 4
    answers = ["Harper", "Carney", "Harper, then Carney", "nobody"]
    assert grade(answers, questions, live="old") == {"matches_old": 0.25, "matches_new": 0.5, "questions": 4}
    assert grade(answers, questions, live="new") == {"matches_old": 0.5, "matches_new": 0.25, "questions": 4}


def test_questions_are_clean_canada_first_and_about_documents_that_both_editions_hold() -> None:
    editions = [EDITIONS / "2015-11-18.jsonl.zst", EDITIONS / "2026-02-19.jsonl.zst"]
    people = EDITIONS / "people_2015-11-18_2026-02-19.jsonl.zst"
    everything = load_questions(people, editions, 1000, None)
    assert len(everything) == 218
    assert everything[0].text == "Who is the head of government of Canada?"
    some = load_questions(people, editions, 1000, 40)
    assert 0 < len(some) < 218
    assert {q.id for q in some} <= {q.id for q in everything}


def test_the_checker_fires_on_a_passage_of_another_snapshot(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, edition in zip(folders, ("one", "two"), strict=True):
        build_tiny_snapshot(folder, edition=edition)
    one, two = (Snapshot.open(folder) for folder in folders)
    texts = [snapshot.shard_of(0).text(np.arange(5)) for snapshot in (one, two)]
    following = [snapshot.shard_of(0).continuation_text(np.arange(5)) for snapshot in (one, two)]
    place = next(i for i in range(5) if texts[0][i] != texts[1][i])
    before = next(i for i in range(5) if following[0][i] != following[1][i])
    good = (place, texts[0][place], following[0][place])
    other_text = (place, texts[1][place], following[0][place])
    other_continuation = (before, texts[0][before], following[1][before])
    checker = Checker(folders)
    assert not checker.is_mixed(Call("search_text", 0, 0, snapshot=one.id, passages=(good,)))
    assert checker.is_mixed(Call("search_text", 0, 0, snapshot=one.id, passages=(good, other_text)))
    assert checker.is_mixed(Call("search_text", 0, 0, snapshot=one.id, passages=(other_continuation,)))
    assert checker.is_mixed(Call("search_text", 0, 0, snapshot="unknown", passages=(good,)))
    assert checker.is_mixed(Call("search_text", 0, 0, snapshot=one.id, passages=((10**9, good[1], good[2]),)))


def test_neighbours_must_be_near_in_the_snapshot_that_the_reply_names(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, edition in zip(folders, ("one", "two"), strict=True):
        build_tiny_snapshot(folder, edition=edition)
    one, two = (Snapshot.open(folder) for folder in folders)
    questions = ["first", "second"]
    vectors_QD = np.concatenate([one.shards[0].vectors(np.array([0])), two.shards[-1].vectors(np.array([1]))])
    checker = NeighborChecker(folders, questions, vectors_QD)

    def call(snapshot: str, question: str, *neighbors: int) -> Call:
        return Call(KIND, 0, 0, snapshot=snapshot, question=question, neighbors=neighbors)

    for snapshot in (one, two):
        near = snapshot.search(vectors_QD, 16).ids_QK
        for question, ids in zip(questions, near.tolist(), strict=True):
            far = next(chunk for chunk in range(snapshot.manifest.chunks) if chunk not in ids)
            assert not checker.is_mixed(call(snapshot.id, question, *ids[:2]))
            assert checker.is_mixed(call(snapshot.id, question, ids[0], far))
    assert checker.is_mixed(call("unknown", "first", 0))
    assert checker.is_mixed(call(one.id, "never asked", 0))


def test_the_second_column_is_graded_apart_for_countries_it_was_not_trained_on() -> None:
    countries = ["Canada", "Chad", "Kenya", "Peru", "Japan", "Norway"]
    questions = [replace(question(), country=country) for country in countries]
    held_out = [country for country in countries if is_of_part(country, "test")]
    assert 0 < len(held_out) < len(countries)
    right = [
        Call(KIND, 0, 0, answer="Stephen HARPER" if c in held_out else "nobody", cross_attention="on")
        for c in countries
    ]
    stale = [replace(call, answer="Harper") for call in right]
    figures = column_figures(questions, {"before": right, "after": stale, "rollback": right})
    assert figures["cross_attention"] == "on"
    assert figures["held_out"]["before"] == {"matches_old": 1.0, "matches_new": 0.0, "questions": len(held_out)}
    assert figures["before"]["matches_old"] == pytest.approx(len(held_out) / len(countries))
    assert figures["after"] == {"matches_old": 1.0, "matches_new": 0.0, "questions": len(countries)}
    off = replace(right[0], cross_attention="off (gate 0)")
    assert column_figures(questions[:2], {"before": [right[0], off]})["cross_attention"] == "off (gate 0), on"


def test_the_second_column_reads_a_passage_a_document(tmp_path: Path) -> None:
    out = tmp_path / "passages.jsonl"
    write_passages(EDITIONS / "2015-11-18.jsonl.zst", EDITIONS / "model", out, 2)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len({row["id"].rsplit("/", 1)[0] for row in rows}) == 2
    tokenizer = Tokenizer.load(EDITIONS / "model")
    assert all(0 < len(tokenizer.encode(row["text"])) <= 64 for row in rows)


def test_calls_under_way_during_a_window_are_inside_it() -> None:
    calls = [Call("search_text", start, 1.0) for start in (0.0, 4.5, 5.5, 9.0)] + [Call("search_text", 5.0, 9.0, "x")]
    report = latency(calls, {"swap": [(5.0, 6.0)], "outside": [(0.0, 1.0), (9.5, 9.6)]})["search_text"]
    assert report["swap"]["calls"] == 2
    assert report["outside"] == {"calls": 2, "p50_ms": 1000.0, "p99_ms": 1000.0, "max_ms": 1000.0}
    assert percentile([], 0.5) is None
    assert percentile([3, 1, 2], 0.99) == 3


def test_the_load_reaches_its_minimum_and_a_client_that_breaks_is_a_failed_call() -> None:
    def broken(number: int) -> Call:
        if number == 3:
            raise ValueError("a bug in the client")
        return Call("search_text", 0, 0, passages=((1, "x", ""),))

    empty = Call("completion", 0, 0)
    load = Load({"completion": (lambda n: empty, 7, 0.0), "search_text": (broken, 11, 0.0)})
    load.start()
    load.finish()
    kinds = [call.kind for call in load.calls]
    assert kinds.count("completion") >= 7
    assert kinds.count("search_text") >= 11
    errors = {call.error for call in load.calls}
    assert errors == {"", "ValueError: a bug in the client", "the reply holds no passage"}


def openbook(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "openbook_cli", *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["db", "build", "missing.jsonl", "--out", "x", "--database", "d"], 2, "missing.jsonl"),
        (["db", "verify", "missing"], 1, "missing"),
        (["db", "list", "--router", "127.0.0.1:1"], 1, "127.0.0.1:1"),
        (["serve", "retriever", "--role", "nothing", "--registry", "r"], 2, "role"),
        (["train", "--config", "missing.yaml", "--print-config"], 2, "missing.yaml"),
        (["demo", "--editions", "missing"], 1, "missing"),
        (["demo", "--workdir", __file__], 1, "test_cli_demo.py"),
        (["train", "--config", "examples", "--print-config"], 2, "examples"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(arguments: list[str], code: int, message: str) -> None:
    done = openbook(*arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_help_is_quick_since_no_part_is_imported() -> None:
    heavy = ("torch", "faiss", "transformers", "grpc", "numpy")
    probe = f"import sys; import openbook_cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"
