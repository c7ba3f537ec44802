"""Chunks: their text joins to the document, headings, passages, and slices of long texts."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openbook_core.errors import ConfigError
from openbook_core.tokenizer import Tokenizer
from openbook_database.chunking import PassageTemplate, chunk_document, slices
from openbook_database.testing import END_TOKEN, tiny_tokenizer
from openbook_database.text import CONTEXT, chunk_text

TINY = tiny_tokenizer()


def chunk_texts(tokenizer: Tokenizer, text: str, m: int) -> list[str]:
    tokens = chunk_document(text, tokenizer, m).tokens
    starts = range(0, len(tokens), m)
    return [
        chunk_text(tokenizer, tokens[max(0, s - CONTEXT) : s], tokens[s : s + m], last=s + m >= len(tokens))
        for s in starts
    ]


@settings(max_examples=150, deadline=None)
@given(st.text(min_size=1, max_size=80), st.integers(1, 20))
@example("👩‍👩‍👧" * 5, 1)
@example("\ufffd" * 30, 3)
@example("a\ufffd\ufffd\ufffd\ufffd東京", 2)
def test_chunk_texts_join_to_the_document(text: str, m: int) -> None:
    texts = chunk_texts(TINY, text, m)
    assert "".join(texts) == TINY.decode(chunk_document(text, TINY, m).tokens) == text


def test_a_character_cut_by_a_border_belongs_to_the_chunk_with_its_last_byte() -> None:
    assert len(TINY.encode("東")) == 3
    assert chunk_texts(TINY, "a東b", 2) == ["a", "東", "b"]
    assert chunk_texts(TINY, "a東b", 4) == ["a東", "b"]


def test_tokens_are_those_of_the_text_without_special_ones() -> None:
    text = f"x {END_TOKEN}user y"
    tokens = chunk_document(text, TINY, 64).tokens
    assert TINY.eos_id is not None
    assert TINY.eos_id not in tokens.tolist()
    assert TINY.eos_id in TINY.encode(text, special=True).tolist()
    assert TINY.decode(tokens) == text


HEADED = "intro words here\n# First #\nbody of first\n```\n# no heading\n```\n## Second part\n\nlast words"


def test_each_chunk_has_the_heading_it_stands_under() -> None:
    chunks = chunk_document(HEADED, TINY, 4)
    _, offsets_N2 = TINY.encode_with_offsets(HEADED)
    for start, heading in zip(offsets_N2[::4, 0].tolist(), chunks.headings, strict=True):
        start += len(HEADED[start:]) - len(HEADED[start:].lstrip())
        expected = None
        if start >= HEADED.index("# First"):
            expected = "First"
        if start >= HEADED.index("## Second"):
            expected = "Second part"
        assert heading == expected
    assert {None, "First", "Second part"} == set(chunks.headings)


def test_hashes_without_a_blank_or_a_word_are_no_headings() -> None:
    assert chunk_document("#tag\n#\n####### seven\nword", TINY, 1).headings == [None] * len(
        TINY.encode("#tag\n#\n####### seven\nword")
    )


@pytest.mark.parametrize(
    ("template", "title", "heading", "passage"),
    [
        ("{title}: {text}", "Angola", None, "Angola: words"),
        ("{title}: {text}", None, "Economy", "words"),
        ("{text}", "Angola", "Economy", "words"),
        ("{title} > {heading}: {text}", "Angola", "Economy", "Angola > Economy: words"),
        ("{title} > {heading}: {text}", "Angola", None, "Angola: words"),
        ("{title} > {heading}: {text}", None, "Economy", "Economy: words"),
        ("{title} > {heading}: {text}", None, None, "words"),
        ("passage: {text} ({title})", "{heading}", "Economy", "passage: words ({heading})"),
        ("passage: {text} ({title})", None, None, "passage: words"),
    ],
)
def test_a_missing_part_goes_with_its_separator(
    template: str, title: str | None, heading: str | None, passage: str
) -> None:
    assert PassageTemplate(template).passage("words", title, heading) == passage


@pytest.mark.parametrize("template", ["", "{title}", "{text}{text}", "{body} {text}"])
def test_bad_templates_are_refused(template: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PassageTemplate(template)
    assert caught.value.field == "passage_template"


def test_slices_give_the_tokens_of_the_whole() -> None:
    choose = random.Random(5)
    pieces = ["word", " other", "\n", "\n\n", "  ", ".", " 12,345.6", "naïve ", "東京", "\t", "it's", "#", " \n "]
    for _ in range(20):
        text = "".join(choose.choices(pieces, k=1500))
        cut = list(slices(text, TINY, size=500))
        assert len(cut) > 1
        assert "".join(piece for _, piece in cut) == text
        assert [start for start, _ in cut] == np.cumsum([0] + [len(piece) for _, piece in cut[:-1]]).tolist()
        tokens = np.concatenate([TINY.encode(piece) for _, piece in cut])
        np.testing.assert_array_equal(tokens, TINY.encode(text))


def test_a_text_without_a_safe_place_is_cut_by_length_and_keeps_its_text() -> None:
    text = "東京" * 2000
    cut = list(slices(text, TINY, size=100))
    assert {len(piece) for _, piece in cut[:-1]} == {100}
    assert len(cut[-1][1]) <= 125
    assert "".join(chunk_texts(TINY, text, 64)) == "".join(piece for _, piece in cut) == text


def test_heading_lines_keep_hashes_and_blanks_inside() -> None:
    text = "# a  # b ## \t#\n##   \n### #\n## ## c\nword"
    assert [h for h in chunk_document(text, TINY, 1).headings if h is not None][-1] == "## c"
    assert {"a  # b", "## c"} == set(chunk_document(text, TINY, 1).headings)


class ByteTokenizer:
    """One token for each character of ASCII text, as cheap as can be."""

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("ascii"), np.uint8).astype(np.uint32)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        first = np.arange(len(text))
        return self.encode(text), np.stack([first, first + 1], 1)


BYTES: Any = ByteTokenizer()


@pytest.mark.parametrize("piece", [" ", " \n\t", "word" + " " * 997, "# a" + " " * 9000 + "b\n", "# " + "\t#" * 5000])
def test_time_grows_with_the_length_of_runs_of_blanks(piece: str) -> None:
    def seconds(size: int) -> float:
        text = (piece * (size // len(piece) + 1))[:size]
        started = time.perf_counter()
        chunks = chunk_document(text, BYTES, 64)
        elapsed = time.perf_counter() - started
        assert len(chunks.tokens) == size
        return elapsed

    short, long = min(seconds(500_000) for _ in range(2)), min(seconds(2_000_000) for _ in range(2))
    assert long < 10 * short + 0.5, "four times the text took more than ten times as long"


def test_one_line_heading_of_blanks_is_read_once() -> None:
    heading = "a" + " #\t" * 700_000 + "b"
    started = time.perf_counter()
    assert set(chunk_document(f"# {heading}", BYTES, 64).headings) == {heading}
    assert time.perf_counter() - started < 10


def test_a_document_of_50_mb() -> None:
    text = "## Part of it\nsome words, and others   \t\n\n" * 1_200_000
    assert len(text) > 50_000_000
    chunks = chunk_document(text, BYTES, 64)
    assert len(chunks.tokens) == len(text)
    assert set(chunks.headings) == {"Part of it"}
