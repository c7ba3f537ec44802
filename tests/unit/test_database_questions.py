"""Questions as a check: hits counted by hand, intervals by the textbook, every kind of file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray

from openbook_core.errors import InputError, MismatchError
from openbook_database.questions.evaluate import evaluate
from openbook_database.questions.read import Question, QuestionFile, read_questions
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder, build_tiny_snapshot

FILLER = "kaloka lokalo kaloka lokalo kaloka lokalo kaloka lokalo kaloka lokalo "


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Four documents of two or three chunks of 32 tokens; the towns stand in first chunks, the rivers in second ones."""
    rows = [
        {"id": "a", "text": "The party met in Paris. kaloka " + "Then the Seine, 5.6 m deep, rose. lokalo lo"},
        {"id": "b", "text": "They went to Bonn. kaloka lokalo" + " There the Rhine is wide and slow. ka"},
        {"id": "c", "text": "Nothing was there but grass, then" + " trees and more trees. kalo"},
        {"id": "d", "text": "Rome, of course. lokalo kaloka lo" + " Where the Tiber flows by, they say. ka lo"},
    ]
    out = tmp_path_factory.mktemp("book") / "book"
    build_tiny_snapshot(out, rows=rows, shards=2, chunk_length=32, dimension=32)
    return Snapshot.open(out)


class Pointing(HashEncoder):
    """A query "b 0 ..." gets the vector of the first chunk of document b, so that this chunk is found first."""

    def __init__(self, book: Snapshot) -> None:
        super().__init__(32)
        self._book = book

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        found = []
        for text in texts:
            name, chunk = text.split()[:2]
            number = self._book.documents.number(name)
            assert number is not None
            row = int(self._book.documents.first_rows[number]) + int(chunk)
            found.append(self._book.shard_of(row).vectors(np.asarray([row]))[0])
        return np.stack(found)


def hits(figures: dict[str, Any], what: str, part: str = "chunk") -> list[int]:
    return [figures[what][part][f"hit@{k}"]["hits"] for k in (1, 2, 5, 10)]


def rank(book: Snapshot, text: str, chunks: set[tuple[str, int]]) -> int:
    """Place of the first of these chunks (document, number in it) in what is found for a query."""
    ids = book.search(Pointing(book).encode_queries([text]), 10).ids_QK[0].tolist()
    wanted = {int(book.documents.first_rows[book.documents.number(name)]) + chunk for name, chunk in chunks}
    return next(place for place, found in enumerate(ids, 1) if found in wanted)


def test_hits_are_those_that_a_reader_counts(book: Snapshot) -> None:
    texts = [book.shard_of(row).text(np.asarray([row]))[0] for row in range(book.manifest.chunks)]
    assert "Paris" in texts[0] and "Seine" in texts[1], "the answers stand where the questions think"
    questions = [
        Question("1", "a 0", ("Paris",), "a"),  # in the chunk itself
        Question("2", "b 0", ("the RHINE!",), "b"),  # in the continuation, or in the next chunk
        Question("3", "a 0", ("Paris",), "c"),  # in another document than the one that is meant
        Question("4", "a 0", ("Paris",)),  # no document is meant
        Question("5", "a 0", ("art", "6", "Berlin"), "a"),  # not as whole words: party, 5.6
    ]
    later = rank(book, "b 0", {("b", 1)})
    figures = evaluate(book, Pointing(book), questions)
    assert hits(figures, "answer", "with_continuation") == [3, 3, 3, 3]
    assert hits(figures, "answer") == [2 + (later <= k) for k in (1, 2, 5, 10)] and later > 1
    first_of_c = min(rank(book, "a 0", {("c", 0)}), rank(book, "a 0", {("c", 1)}))
    assert hits(figures, "document") == [3 + (first_of_c <= k) for k in (1, 2, 5, 10)]
    assert figures["document"]["chunk"]["questions"] == 4 and figures["answer"]["chunk"]["questions"] == 5
    assert (figures["documents_named"], figures["documents_unknown"]) == (3, 0)
    assert "evidence" not in figures


def test_evidence_is_a_run_of_its_words(book: Snapshot) -> None:
    evidence = "Yet the party met in Paris. Kaloka: then, the Seine , 5.6 m deep rose and fell"
    questions = [
        Question("1", "a 0", ("x",), evidence=evidence),  # its run of eight words goes over the chunk's border
        Question("2", "b 0", ("x",), evidence="went to Bonn"),  # shorter than a run: all of it
        Question("3", "b 0", ("x",), evidence="they went to Berlin kaloka lokalo there Rhine is"),  # seven at most
    ]
    figures = evaluate(book, Pointing(book), questions)
    assert hits(figures, "evidence", "with_continuation") == [2, 2, 2, 2]
    assert hits(figures, "evidence")[0] == 1


def test_shares_have_wilsons_interval(book: Snapshot) -> None:
    questions = [Question(str(n), "a 0", ("Paris" if n < 8 else "Berlin",)) for n in range(10)]
    found = evaluate(book, Pointing(book), questions)["answer"]["chunk"]["hit@1"]
    assert (found["hits"], found["share"]) == (8, 0.8)
    # Agresti and Coull (1998): 8 of 10.
    assert (found["low"], found["high"]) == pytest.approx((0.4902, 0.9433), abs=5e-5)


def test_another_encoder_is_refused(book: Snapshot) -> None:
    with pytest.raises(MismatchError, match="dimension: the encoder given has 16, the snapshot has 32"):
        evaluate(book, HashEncoder(16), [Question("1", "a", ("b",))])


def read(path: Path, *rows: Any, held: Sequence[str] = (), **options: Any) -> QuestionFile:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return read_questions(path, set(held).__contains__, **options)


def test_each_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    squad = {"data": [{"paragraphs": [{"context": "In 1973.", "qas": [
        {"id": "s", "question": "When?", "answers": [{"text": "1973"}, {"text": "1973"}]},
        {"id": "none", "question": "Why?", "answers": []}]}]}]}  # fmt: skip
    assert read(path, squad) == QuestionFile("squad", (Question("s", "When?", ("1973",), evidence="In 1973."),))
    path.write_text(json.dumps(squad, indent=1))
    assert read_questions(path, bool).questions[0].id == "s"
    qed = {"example_id": -3, "question_text": "who", "paragraph_text": "R won .",
           "original_nq_answers": [[{"string": "R"}], [{"string": "R won"}]]}  # fmt: skip
    assert read(path, qed) == QuestionFile("qed", (Question("-3", "who", ("R", "R won"), evidence="R won ."),))
    people = {"id": "x", "question": "Who?", "old_answer": "A", "old_aliases": ["Mr A"], "old_doc": "2015/x",
              "old_evidence": "chief: A", "new_answer": "B", "new_aliases": [], "new_doc": "2026/x"}  # fmt: skip
    old = Question("x", "Who?", ("A", "Mr A"), "2015/x", "chief: A")
    assert read(path, people, held=["2015/x"]) == QuestionFile("factbook, old edition", (old,))
    new = Question("x", "Who?", ("B",), "2026/x")
    assert read(path, people, held=["2026/x"]) == QuestionFile("factbook, new edition", (new,))
    rows = [{"question": "q", "answers": ["a", "b", "a"], "document": "d", "evidence": "e", "id": 7}]
    rows += [{"question": "q", "answer": "a"}]
    found = read(path, *rows)
    assert found == QuestionFile(
        "rows", (Question("7", "q", ("a", "b"), "d", "e"), Question(f"{path}, line 2", "q", ("a",)))
    )
    assert len(read(path, *rows, limit=1).questions) == 1
    packed = tmp_path / "qa.jsonl.zst"
    packed.write_bytes(zstandard.compress(path.read_bytes()))
    assert len(read_questions(packed, bool).questions) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no question"),
        ("{", r"qa\.jsonl, line 1: is not JSON"),
        ('{"question": "q", "answers": ["a"]}\n{', r"qa\.jsonl, line 2: is not JSON"),
        ("[1]", "line 1: holds a JSON list, expected an object"),
        ('{"question": "q"}', "line 1: field 'answers' must be a text or a list of texts; it has 'question'"),
        ('{"question": "q", "answers": [" "]}', "line 1: has no answer"),
        ('{"question": 4, "answers": ["a"]}', "line 1: field 'question' is a int, expected a text"),
        ('{"answers": ["a"]}', "line 1: has no text in field 'question'; it has 'answers'"),
        ('{"data": [{"title": "t"}]}', "article 1: field 'paragraphs' is missing or no list"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_questions(path, bool)
    with pytest.raises(InputError, match="no such input file"):
        read_questions(tmp_path / "missing", bool)


def test_the_guides_table_is_that_of_its_runs() -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs" / "guides" / "neighbour-cache-and-publishing.md").read_text(encoding="utf-8")
    labels = {("answer", "chunk"): "answer in the chunk", ("answer", "with_continuation"): "answer, with continuation"}
    labels |= {("evidence", "chunk"): "evidence in the chunk", ("document", "chunk"): "document"}
    labels |= {("evidence", "with_continuation"): "evidence, with continuation"}
    rows = []
    for run in json.loads((root / "docs" / "results" / "book-questions.json").read_text(encoding="utf-8"))["runs"]:
        figures = run["figures"]
        for (what, part), label in labels.items():
            if what in figures:
                shares = [figures[what][part][f"hit@{k}"] for k in (1, 2, 5, 10)]
                cells = [f"{each['share']:.3f} [{each['low']:.2f}, {each['high']:.2f}]" for each in shares]
                rows.append(f"| {run['name']}, {figures['questions']} | {label} | {' | '.join(cells)} |")
    assert len(rows) == 9
    assert not [row for row in rows if row not in text]
