"""Cleaning: duplicates and overlap against brute force over Python's own sets, and the same bytes after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openbook_core.errors import ConfigError, InputError, UnavailableError
from openbook_database.build.progress import Update
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.cleaning import near
from openbook_database.cleaning.config import GRAM
from openbook_database.cleaning.decontaminate import LEAST, EvaluationIndex, Overlap, passage_jaccard
from openbook_database.cleaning.evaluation import EvaluationText, read_evaluation
from openbook_database.cleaning.exact import text_digest
from openbook_database.cleaning.grams import Grams, jaccard, longest_common_run
from openbook_database.cleaning.kept import BlockTokens, KeptTokens
from openbook_database.cleaning.near import GRAM as NEAR_GRAM
from openbook_database.cleaning.near import NearDuplicates, bands_and_rows
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder, tiny_rows, tiny_tokenizer, tree, write_rows
from openbook_database.verify import verify

Ids = NDArray[np.uint32]


def gram_list(tokens: Sequence[int] | Ids, n: int) -> list[tuple[int, ...]]:
    ids = [int(token) for token in tokens]
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]


def gram_set(tokens: Sequence[int] | Ids, n: int) -> set[tuple[int, ...]]:
    return set(gram_list(tokens, min(n, len(tokens)))) if len(tokens) else set()


def true_jaccard(left: set[Any], right: set[Any]) -> float:
    return len(left & right) / len(left | right) if left | right else 0.0


def true_run(left: Sequence[int], right: Sequence[int]) -> int:
    """The textbook's table of common suffixes."""
    best, before = 0, [0] * (len(right) + 1)
    for token in left:
        now = [0]
        for place, other in enumerate(right):
            now.append(before[place] + 1 if token == other else 0)
        best, before = max(best, *now), now
    return best


TOKENS = st.lists(st.integers(0, 3), max_size=60)


@settings(max_examples=150, deadline=None)
@given(TOKENS, TOKENS, st.integers(1, 8))
def test_hashed_runs_are_the_runs(left: list[int], right: list[int], n: int) -> None:
    one, other = Grams(np.asarray(left, np.uint16)), Grams(np.asarray(right, np.uint32))
    hashes = dict(zip(gram_list(left, n), one.hashes(n).tolist(), strict=True))
    assert len(set(hashes.values())) == len(hashes)
    if min(len(left), len(right)) >= n:
        assert jaccard(one.distinct(n), other.distinct(n)) == true_jaccard(gram_set(left, n), gram_set(right, n))
    assert longest_common_run(one, other) == (true_run(left, right) if left and right else 0)


def test_equal_texts_have_equal_digests() -> None:
    composed, split = "é  naïve\n\ttext ", unicodedata.normalize("NFD", " é naïve text")
    assert composed != split
    assert text_digest(composed) == text_digest(split)
    assert len({text_digest(text) for text in ("a b", "ab", "A b", "a b.", "ａ b")}) == 5


def edited(tokens: Ids, share: float, random: np.random.Generator) -> Ids:
    """`tokens` with a share of them replaced."""
    copy = tokens.copy()
    places = random.random(len(copy)) < share
    copy[places] = random.integers(0, 300, int(places.sum()))
    return copy


def near_documents(seed: int) -> list[Ids]:
    """Documents, most of them edited copies of an earlier one, from nearly equal to hardly related."""
    random = np.random.default_rng(seed)
    documents: list[Ids] = []
    for _ in range(150):
        if documents and random.random() < 0.7:
            original = documents[int(random.integers(len(documents)))]
            documents.append(edited(original, float(random.choice([0.002, 0.01, 0.02, 0.03, 0.05])), random))
        else:
            documents.append(random.integers(0, 300, int(random.integers(1, 400))).astype(np.uint32))
    return documents


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", [1, 2])
def test_near_duplicates_are_those_of_brute_force(threshold: float, seed: int) -> None:
    documents = near_documents(seed)
    kept: list[Ids] = []
    duplicates = NearDuplicates(threshold, lambda number: kept[number])
    removed = 0
    for document in documents:
        sketch = duplicates.sketch(document)
        found = duplicates.find(sketch)
        own = gram_set(document, NEAR_GRAM)
        truth = [true_jaccard(own, gram_set(other, NEAR_GRAM)) for other in kept]
        similar = [number for number, value in enumerate(truth) if value >= threshold]
        assert (found is None) == (not similar)  # a miss is possible, but not of these seeds
        if found is None:
            kept.append(document)
            duplicates.keep(sketch)
        else:
            removed += 1
            assert found[0] == similar[0]
            assert found[1] == truth[similar[0]]
    assert 20 < removed < 120


def test_a_pair_at_the_threshold_is_hardly_ever_missed() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0):
        bands, rows = bands_and_rows(threshold)
        assert (1 - threshold**rows) ** bands <= 0.001 or rows == 1
        assert bands * rows <= 128


def brute_overlap(document: list[int], texts: list[list[int]], threshold: float, run: int | None) -> list[bool]:
    """For each evaluation text, whether one of the three rules holds, by sets over every window."""
    answers = []
    grams = gram_list(document, GRAM)
    for text in texts:
        wanted, length = gram_set(text, GRAM), len(text) - GRAM + 1
        windows = [grams] + [grams[start : start + length] for start in range(max(1, len(grams) - length + 1))]
        best = max(true_jaccard(set(window), wanted) for window in windows)
        answers.append(best >= threshold or (run is not None and true_run(document, text) >= run))
    return answers


class Words:
    """A tokenizer of numbers: the text "3 17" is the tokens 3 and 17, also behind a blank."""

    def encode(self, text: str) -> Ids:
        return np.asarray([int(word) for word in text.split()], dtype=np.uint32)


@pytest.mark.parametrize(("threshold", "run"), [(0.8, 50), (0.8, None), (0.5, 20), (1.0, 13), (0.3, None)])
def test_overlap_is_that_of_brute_force(threshold: float, run: int | None) -> None:
    random = np.random.default_rng(7)
    # Few different tokens, so that runs repeat within a text.
    texts = [random.integers(0, 4, int(random.integers(5, 120))).tolist() for _ in range(12)]
    texts += [[1, 2, 3] * 20, [5] * 70, texts[3] + [9], [number % 50 for number in range(150)]]
    items = [EvaluationText(str(number), " ".join(map(str, text))) for number, text in enumerate(texts)]
    index = EvaluationIndex(items, Words(), threshold, run)  # type: ignore[arg-type]
    long_enough = [number for number, text in enumerate(texts) if len(text) >= LEAST]
    assert (index.texts, index.short) == (len(long_enough), len(texts) - len(long_enough))
    found_count = 0
    for _ in range(40):
        document = random.integers(0, 6, int(random.integers(0, 250))).tolist()
        if random.random() < 0.8:
            text = np.asarray(texts[int(random.integers(len(texts)))], np.uint32)
            part = edited(text, float(random.choice([0, 0.01, 0.03])), random).tolist()
            begin = int(random.integers(0, len(part)))
            part = part if random.random() < 0.5 else part[begin:]
            place = int(random.integers(0, len(document) + 1))
            document = document[:place] + part + document[place if random.random() < 0.5 else len(document) :]
        overlapping = brute_overlap(document, [texts[number] for number in long_enough], threshold, run)
        expected = [str(number) for number, answer in zip(long_enough, overlapping, strict=True) if answer]
        found = index.find(np.asarray(document, dtype=np.uint32))
        assert (found.item if found else None) == (expected[0] if expected else None)
        if found:
            found_count += 1
            assert found.run == true_run(document, texts[int(found.item)])
            assert (found.rule == "run") == (found.jaccard < threshold)
    assert 5 < found_count < 40


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=40),
    st.sets(st.integers(0, 9), min_size=1),
    st.integers(1, 12),
    st.sampled_from([0.2, 0.5, 0.8, 1.0]),
)
def test_the_best_stretch_of_a_document(grams: list[int], wanted: set[int], length: int, threshold: float) -> None:
    windows = [set(grams[start : start + length]) for start in range(max(1, len(grams) - length + 1))]
    best = max(true_jaccard(window, wanted) for window in windows)
    found = passage_jaccard(np.asarray(grams, np.uint64), np.asarray(sorted(wanted), np.uint64), length, threshold)
    assert found == best if best >= threshold else found < threshold


def test_tokens_are_held_only_until_their_block_is_written() -> None:
    documents = [np.asarray(tokens, np.uint32) for tokens in ([1, 2, 3], [4], [5, 6, 7, 8, 9])]
    rows = np.asarray([2, 1]), np.asarray([[1, 2], [3, 0], [4, 0]], np.uint16), np.asarray([2, 1, 1], np.uint16)
    read: list[int] = []

    def read_block(block: int) -> BlockTokens:
        read.append(block)
        return rows

    kept = KeptTokens(read_block)
    for document in documents:
        kept.add(document)
    assert [kept.tokens(number).tolist() for number in range(3)] == [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    assert not read
    kept.block_written(2)
    assert [kept.tokens(number).tolist() for number in range(3)] == [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    assert read == [0]


def find(document: str, texts: Sequence[str], **options: Any) -> Overlap | None:
    tokenizer = tiny_tokenizer()
    items = [EvaluationText(f"item {number}", text) for number, text in enumerate(texts)]
    index = EvaluationIndex(items, tokenizer, options.get("threshold", 0.8), options.get("run", 50))
    return index.find(tokenizer.encode(document))


QUESTION = "Which of the seven bridges did the old king cross?"


def test_the_rule_that_holds_is_named() -> None:
    article = " ".join(f"Sentence {number} of an article about bridges." for number in range(60))
    paragraph = "A paragraph that a question is asked about, which is not very long but long enough to be known again."
    found = find(paragraph, ["other words " * 9, paragraph])
    assert found is not None
    assert (found.item, found.rule, found.jaccard) == ("item 1", "document", 1.0)
    found = find(article + "\n" + paragraph + " " + article, [paragraph])
    assert found is not None
    assert (found.rule, found.jaccard >= 0.99) == ("passage", True)
    found = find(article + " " + paragraph[:80] + " and on", [paragraph + " More. " + article[900:1500]])
    assert found is not None
    assert (found.rule, found.jaccard < 0.8) == ("run", True)
    assert found.run >= 50
    assert find(article + " " + paragraph[:40], [paragraph]) is None
    assert find(article, ["Sentence 7 of", "Sentence"]) is None


def test_a_short_question_is_found_wherever_it_stands() -> None:
    """Behind a blank the first token is another one."""
    for text in (QUESTION, "Q: " + QUESTION, f"words\n\n{QUESTION}\nMore words", f"He asked: “{QUESTION}”"):
        found = find(text, [QUESTION])
        assert found is not None, text
        assert found.jaccard == 1.0


SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "A_title_that_is_long_enough_to_be_looked_for_but_is_not",
            "paragraphs": [
                {
                    "context": "The context.",
                    "qas": [{"id": "56", "question": "Who?", "answers": [{"text": "He", "answer_start": 1}]}],
                }
            ],
        }
    ],
}


def test_texts_of_evaluation_files(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(json.dumps(SQUAD))
    assert [(text.item, text.text) for text in read_evaluation(tmp_path / "dev.json")] == [
        ("dev.json: data.0.paragraphs.0.context", "The context."),
        ("dev.json: data.0.paragraphs.0.qas.0.question", "Who?"),
        ("dev.json: data.0.paragraphs.0.qas.0.answers.0.text", "He"),
    ]
    rows: list[dict[str, Any]] = [
        {"id": "x", "question": "Q", "answers": ["A", "B"]},
        {"context": {"title": "no", "text": "C"}, "choices": []},
    ]
    lines = write_rows(tmp_path / "dev.jsonl", rows)
    assert [(text.item, text.text) for text in read_evaluation(lines)] == [
        ("dev.jsonl, line 1: question", "Q"),
        ("dev.jsonl, line 1: answers.0", "A"),
        ("dev.jsonl, line 1: answers.1", "B"),
        ("dev.jsonl, line 2: context.text", "C"),
    ]
    (tmp_path / "book.txt").write_bytes("\ufeffOne\npart.\r\n\r\n  \nTwo".encode())
    assert [(text.item, text.text.strip()) for text in read_evaluation(tmp_path / "book.txt")] == [
        ("book.txt, paragraph 1", "One\npart."),
        ("book.txt, paragraph 2", "Two"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b"{", r"a\.json is not JSON"),
        ("a.jsonl", b'{"question": "Q"}\n[', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"id": "x"}', r"has no evaluation text: expected plain text, or JSON with .*question"),
        ("a.txt", b"\xff", r"a\.txt is not UTF-8"),
        ("a.txt", b" \n ", "has no evaluation text"),
        ("a.json.gz", b"words", "damaged or not gzip"),
    ],
)
def test_evaluation_files_that_cannot_be_used_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    source = write_rows(tmp_path / "rows.jsonl", tiny_rows(3))
    cleaning = {"evaluation": [tmp_path / name]}
    with pytest.raises(InputError, match=message):
        build([source], tmp_path / "snapshot", cleaning)
    assert not (tmp_path / "snapshot.building").exists()
    with pytest.raises(InputError, match="no such input file"):
        build([source], tmp_path / "snapshot", {"evaluation": [tmp_path / "gone.txt"]})


def parsed(cleaning: dict[str, Any]) -> BuildSettings:
    # Small blocks of the chunk stage, where cleaning happens; the later stages are quick.
    return BuildSettings.parse({"chunk_length": 16, "embed_block": 1024, "chunk_block": 64, "cleaning": cleaning})


def build(sources: Sequence[Path], out: Path, cleaning: dict[str, Any], **changes: Any) -> Any:
    arguments: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "encoder": HashEncoder()} | changes
    return build_snapshot(sources, out, database="tiny", settings=parsed(cleaning), **arguments)


@pytest.fixture(autouse=True)
def without_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing takes most of a tiny build's time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def report(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.with_name(out.name + ".report.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[str, Any]]:
    """Two sources with equal and nearly equal documents within and across them, and an evaluation file."""
    folder = tmp_path_factory.mktemp("dirty")
    rows = tiny_rows(30, seed=4, words=90)
    texts = [str(row["text"]) for row in rows]
    longest = max(range(12), key=lambda number: len(texts[number]))
    first = [*rows[:8], {"id": "same", "text": f" {texts[2]}\n\n"}, *rows[8:20]]
    first.append({"id": "alike", "text": texts[longest] + "\nOne more line."})
    second = [
        {"id": "same again", "text": texts[2]},
        *rows[20:],
        {"id": "alike again", "text": "New. " + texts[longest]},
    ]
    sources = [write_rows(folder / "a.jsonl", first), write_rows(folder / "b.jsonl", second)]
    asked = [{"question": texts[25][40:250]}, {"question": "short?"}, {"context": texts[6]}]
    evaluation = write_rows(folder / "asked.jsonl", asked)
    return sources, {"dedup": "near", "evaluation": [evaluation]}


def test_what_is_cleaned_away_is_counted_and_reported(tmp_path: Path, dirty: tuple[list[Path], dict[str, Any]]) -> None:
    sources, cleaning = dirty
    rows = tiny_rows(30, seed=4, words=90)
    out = tmp_path / "snapshot"
    result = build(sources, out, cleaning)
    verify(out)
    lines = report(out)
    assert [(line["source"], line["id"], line["kind"]) for line in lines] == [
        ("a.jsonl", rows[6]["id"], "evaluation overlap"),
        ("a.jsonl", "same", "exact duplicate"),
        ("a.jsonl", "alike", "near duplicate"),
        ("b.jsonl", "same again", "exact duplicate"),
        ("b.jsonl", rows[25]["id"], "evaluation overlap"),
        ("b.jsonl", "alike again", "near duplicate"),
    ]
    assert [lines[place]["of"] for place in (1, 3)] == [rows[2]["id"]] * 2
    assert lines[2]["of"] == lines[5]["of"]
    assert all(0.8 <= lines[place]["jaccard"] < 1 for place in (2, 5))
    assert lines[0]["item"] == "asked.jsonl, line 3: context"
    assert lines[4]["item"] == "asked.jsonl, line 1: question"
    manifest = Snapshot.open(out).manifest
    counts = {"evaluation overlap": 2, "exact duplicate": 2, "near duplicate": 2}
    assert result.removed == manifest.cleaning["removed"] == counts
    assert manifest.cleaning["evaluation"] == {"texts": 2, "short": 1}
    assert [source["removed"] for source in manifest.sources] == [dict.fromkeys(counts, 1)] * 2
    assert manifest.documents == 34 - 6
    assert all(manifest.recipe["evaluation"]["0"][key] for key in ("name", "size", "blake3"))
    documents = Snapshot.open(out).documents
    assert all(documents.number(str(line["id"])) is None for line in lines)
    exact = build(sources, tmp_path / "exact", {"dedup": "exact"})
    assert exact.removed == {"exact duplicate": 2}
    build(sources, tmp_path / "plain", {})
    assert not (tmp_path / "plain.report.jsonl").exists()


# Forks a process for each build that it is asked for, which kills itself before it renames the Nth file.
BUILDER = """
import json, os, signal, sys
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.testing import HashEncoder, tiny_tokenizer

def build(sources, out, settings, count):
    replace = os.replace

    def before(*arguments):
        nonlocal count
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)

    os.replace, os.fsync = before, lambda descriptor: None
    build_snapshot(sources, out, database="tiny", tokenizer=tiny_tokenizer(), encoder=HashEncoder(),
                   settings=BuildSettings.model_validate_json(settings))

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            build(**json.loads(line))
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def builder() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=30)


@pytest.mark.parametrize("count", [*range(1, 28), 34])
def test_a_build_killed_while_it_cleans_goes_on_to_the_same_bytes(
    tmp_path: Path,
    dirty: tuple[list[Path], dict[str, Any]],
    whole: tuple[dict[str, bytes], bytes],
    builder: subprocess.Popen[str],
    count: int,
) -> None:
    sources, cleaning = dirty
    out = tmp_path / "snapshot"
    job = {"sources": list(map(str, sources)), "out": str(out), "settings": parsed(cleaning).model_dump_json()}
    assert builder.stdin is not None and builder.stdout is not None
    builder.stdin.write(json.dumps({**job, "count": count}) + "\n")
    builder.stdin.flush()
    assert int(builder.stdout.readline()) == -signal.SIGKILL
    build(sources, out, cleaning)
    assert tree(out) == whole[0]
    assert (tmp_path / "snapshot.report.jsonl").read_bytes() == whole[1]


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, dirty: tuple[list[Path], dict[str, Any]]
) -> tuple[dict[str, bytes], bytes]:
    out = tmp_path_factory.mktemp("whole") / "snapshot"
    build(dirty[0], out, dirty[1])
    return tree(out), out.with_name("snapshot.report.jsonl").read_bytes()


def test_state_is_given_back_from_finished_blocks(tmp_path: Path) -> None:
    """The twins of a document in every block, so each later block needs what the earlier ones held."""
    rows = [row for row in tiny_rows(12, seed=9, words=150) if len(str(row["text"])) > 300]
    copies = [{**row, "id": f"{row['id']}-{number}"} for number in range(4) for row in rows]
    source = write_rows(tmp_path / "rows.jsonl", copies)
    result = build([source], tmp_path / "whole", {"dedup": "near"})
    assert result.removed == {"exact duplicate": 3 * len(rows)}
    expected = tree(tmp_path / "whole")
    for copies_differ, kind in ((False, "exact duplicate"), (True, "near duplicate")):
        if copies_differ:
            for number, row in enumerate(copies):
                row["text"] = f"{row['text']} {number}."
            write_rows(source, copies)
            result = build([source], tmp_path / "near", {"dedup": "near"})
            assert result.removed == {kind: 3 * len(rows)}
            expected = tree(tmp_path / "near")
        stop_after = [0]

        def stop(update: Update, stop_after: list[int] = stop_after) -> None:
            if update.stage != "chunk" or update.done > stop_after[0]:
                raise KeyboardInterrupt

        out = tmp_path / f"parts-{copies_differ}"
        for stop_after[0] in range(0, result.chunks, 60):
            with pytest.raises(KeyboardInterrupt):
                build([source], out, {"dedup": "near"}, progress=stop)
        build([source], out, {"dedup": "near"})
        assert tree(out) == expected
        assert len(report(out)) == 3 * len(rows)


def test_an_id_of_a_document_that_was_cleaned_away_stays_taken(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "words"}, {"id": "b", "text": "words"}, *tiny_rows(20), {"id": "b", "text": "other"}]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    for attempt in range(2):
        with pytest.raises((InputError, KeyboardInterrupt)) as caught:
            build([source], tmp_path / "snapshot", {"dedup": "exact"}, progress=_stop_once(attempt))
    assert "the id 'b' was used" in str(caught.value)


def _stop_once(attempt: int) -> Any:
    def progress(update: Update) -> None:
        if not attempt:
            raise KeyboardInterrupt

    return progress


def test_documents_that_are_all_equal_or_all_removed(tmp_path: Path) -> None:
    rows = [{"id": f"{number:03d}", "text": "the very same words"} for number in range(200)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    for dedup in ("exact", "near"):
        result = build([source], tmp_path / dedup, {"dedup": dedup})
        assert (result.documents, result.removed) == (1, {"exact duplicate": 199})
        verify(result.path)
    text = "An evaluation text that is long enough to be looked for, and the only document."
    (tmp_path / "asked.txt").write_text(text)
    source = write_rows(tmp_path / "one.jsonl", [{"id": "a", "text": text}])
    with pytest.raises(InputError, match=r"no document \(1 documents were left out\)"):
        build([source], tmp_path / "none", {"evaluation": [tmp_path / "asked.txt"]})


def test_other_evaluation_files_are_another_recipe(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", tiny_rows(6))
    asked = tmp_path / "asked.txt"
    asked.write_text("What is asked here is long enough to be looked for by its tokens.")
    build([source], tmp_path / "snapshot", {"evaluation": [asked]})
    assert build([source], tmp_path / "snapshot", {"evaluation": [asked]}).reused
    asked.write_text("What is asked now is other than what was asked before, and longer.")
    with pytest.raises(ConfigError, match=r"evaluation\.0\.blake3: was"):
        build([source], tmp_path / "snapshot", {"evaluation": [asked]})
    with pytest.raises(ConfigError, match=r"settings\.cleaning\.dedup: was \"none\", now \"exact\""):
        build([source], tmp_path / "snapshot", {"dedup": "exact"})

    def change(update: Update) -> None:
        asked.write_text("changed")

    with pytest.raises(InputError, match=r"asked\.txt changed while it was being read"):
        build([source], tmp_path / "other", {"evaluation": [asked]}, progress=change)


def test_options_say_what_is_wrong() -> None:
    for cleaning, field in (
        ({"dedup": "fuzzy"}, r"cleaning\.dedup"),
        ({"near_threshold": 1.5}, r"cleaning\.near_threshold"),
        ({"longest_run": 5}, r"cleaning\.longest_run"),
        ({"decontaminate": []}, r"unknown key 'decontaminate'"),
    ):
        with pytest.raises(ConfigError, match=field):
            BuildSettings.parse({"cleaning": cleaning})


def test_a_missing_library_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(near, "version", missing)
    source = write_rows(tmp_path / "rows.jsonl", tiny_rows(3))
    with pytest.raises(UnavailableError, match=r"pip install 'openbook-database\[near\]'"):
        build([source], tmp_path / "snapshot", {"dedup": "near"})
    assert not (tmp_path / "snapshot.building").exists()
    assert (
        "rensa"
        not in Snapshot.open(build([source], tmp_path / "exact", {"dedup": "exact"}).path).manifest.recipe["libraries"]
    )


def test_documents_of_few_tokens() -> None:
    duplicates = NearDuplicates(0.8, lambda number: kept[number])
    kept = [np.asarray(tokens, np.uint32) for tokens in ([1], [2], [1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5])]
    for document in kept:
        assert duplicates.find(duplicates.sketch(document)) is None
        duplicates.keep(duplicates.sketch(document))
    for number, document in enumerate(kept):
        assert duplicates.find(duplicates.sketch(document)) == (number, 1.0)
    assert all(len(one) <= len(other) for one, other in pairwise(kept))
