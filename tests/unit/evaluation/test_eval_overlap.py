"""RETRO's r against a naive search for common substrings, and figures by it against sums over the chosen chunks."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from trainer_fakes import M, byte_tokenizer

from openbook_trainer.eval import overlap as module
from openbook_trainer.eval.clusters import cluster
from openbook_trainer.eval.overlap import THRESHOLDS, by_overlap, longest_runs, overlaps
from openbook_trainer.eval.retrieved import Retrieved
from openbook_trainer.eval.texts import MeasuredText
from openbook_trainer.eval.windows import Sliding
from openbook_trainer.neighbours import Neighbors


def longest_common_run(one: list[int], other: list[int]) -> int:
    """By trying every pair of starts."""
    best = 0
    for i in range(len(one)):
        for j in range(len(other)):
            size = 0
            while i + size < len(one) and j + size < len(other) and one[i + size] == other[j + size]:
                size += 1
            best = max(best, size)
    return best


TOKENS = st.lists(st.integers(0, 2), min_size=0, max_size=9)


@given(
    st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=2, max_size=2)), min_size=1, max_size=5), st.integers(1, 40)
)
def test_runs_are_those_of_every_pair_of_starts(rows: list[tuple[list[int], list[list[int]]]], block: int) -> None:
    """Padding is 0, which is a token too; small blocks give what large ones give."""

    def padded(tokens: list[int]) -> list[int]:
        return tokens + [0] * (9 - len(tokens))

    wanted = [max(longest_common_run(chunk, neighbour) for neighbour in neighbours) for chunk, neighbours in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_ELEMENTS", block)
        found = longest_runs(
            np.array([padded(chunk) for chunk, _ in rows]),
            np.array([len(chunk) for chunk, _ in rows]),
            np.array([[padded(neighbour) for neighbour in neighbours] for _, neighbours in rows]),
            np.array([[len(neighbour) for neighbour in neighbours] for _, neighbours in rows]),
        )
    assert found.tolist() == wanted


def text_of(name: str, text: str) -> MeasuredText:
    return MeasuredText(name, text, byte_tokenizer().encode(text).astype(np.int64), np.arange(len(text) + 1), False)


def neighbours_of(rows: list[list[str]]) -> Neighbors:
    """Those of a text's chunks; the byte tokenizer's ids of each."""
    ids = np.zeros((1, len(rows), len(rows[0]), 2 * M), np.int64)
    lengths = np.zeros(ids.shape[:3], np.int64)
    for chunk, found in enumerate(rows):
        for place, text in enumerate(found):
            ids[0, chunk, place, : len(text)] = byte_tokenizer().encode(text)
            lengths[0, chunk, place] = len(text)
    return Neighbors(ids, lengths)


def retrieved(nearest: list[Neighbors], k: int) -> Retrieved:
    return Retrieved("s", 0, k, nearest, [], 0)


def test_r_of_what_a_chunk_found_and_of_what_was_read_before_it() -> None:
    text = text_of("d", "abcdefghijklmnopqrs")
    nearest = [
        neighbours_of(
            [
                ["__abc__", "ijkl_____", "__jklmno_"],  # 3 of 8; the second is read for the next chunk, the third not
                ["", "mn______", ""],  # 2 here and 4 from before: 4 of 8
                ["rs", "", ""],  # 2 of 3
            ]
        )
    ]
    (found,) = overlaps([text], retrieved(nearest, 2), M)
    np.testing.assert_allclose(found, [3 / 8, 4 / 8, 2 / 3])
    (wider,) = overlaps([text], retrieved(nearest, 3), M)
    np.testing.assert_allclose(wider, [3 / 8, 6 / 8, 2 / 3])


def by_hand(values: NDArray[Any], sizes: NDArray[Any]) -> tuple[float, float]:
    """The ratio of sums and its error when documents are left out one at a time (jackknife)."""
    count = len(values)
    without = [(values.sum() - values[i]) / (sizes.sum() - sizes[i]) for i in range(count)]
    spread = sum((one - np.mean(without)) ** 2 for one in without)
    return float(values.sum() / sizes.sum()), math.sqrt((count - 1) / count * spread)


def test_bits_per_byte_over_the_chunks_up_to_each_threshold() -> None:
    draw = random.Random(2)
    texts = [text_of(f"d{n}", "".join(draw.choices("abcé", k=draw.randint(20, 40)))) for n in range(40)]
    texts = [
        MeasuredText(each.external_id, each.text, np.arange(len(each.text)), np.arange(len(each.text) + 1), False)
        for each in texts
    ]
    random_numbers = np.random.default_rng(1)
    chunks = [-(-len(text.tokens_N) // M) for text in texts]
    found = [random_numbers.choice([0.1, 0.2, 0.6, 1.0], count) for count in chunks]
    off = [random_numbers.uniform(1, 3, len(text.tokens_N) - 1) for text in texts]
    on = [each - random_numbers.uniform(0, 1, len(each)) for each in off]
    clusters = cluster(texts, Sliding(16, 8), words=False)
    rows = by_overlap(texts, clusters, found, {"off": off, "on": on, "shuffled": off}, M)
    assert [row["r_at_most"] for row in rows] == list(THRESHOLDS)
    for row in rows:
        bits: dict[str, list[float]] = {"off": [], "on": [], "on_minus_off": []}
        sizes, tokens = [], 0
        for text, r, one, other in zip(texts, found, off, on, strict=True):
            chosen = [t for t in range(1, len(text.tokens_N)) if r[t // M] <= row["r_at_most"]]
            if not chosen:
                continue
            tokens += len(chosen)
            sizes.append(sum(len(text.text[t].encode()) for t in chosen))
            bits["off"].append(sum(one[t - 1] for t in chosen) / math.log(2))
            bits["on"].append(sum(other[t - 1] for t in chosen) / math.log(2))
            bits["on_minus_off"].append(bits["on"][-1] - bits["off"][-1])
        assert row["chunks"] == sum(int((r <= row["r_at_most"]).sum()) for r in found)
        assert row["clusters"] == len(sizes)
        assert row["tokens"] == tokens
        for name, values in bits.items():
            value, error = by_hand(np.array(values), np.array(sizes))
            assert row[name]["bits_per_byte"] == pytest.approx(value)
            assert row[name]["bits_per_byte_standard_error"] == pytest.approx(error, rel=0.1)


def test_no_chunk_below_a_threshold() -> None:
    texts = [text_of("a", "abcdefghij"), text_of("b", "klmnopqrst")]
    losses = {name: [np.ones(9), np.ones(9)] for name in ("off", "on")}
    clusters = cluster(texts, Sliding(16, 8), words=False)
    rows = by_overlap(texts, clusters, [np.array([0.6, 1.0]), np.array([1.0, 1.0])], losses, M)
    assert rows[0]["off"] == {"bits_per_byte": None, "bits_per_byte_standard_error": None}
    assert (rows[0]["chunks"], rows[0]["clusters"], rows[0]["tokens"]) == (0, 0, 0)
    half = rows[4]
    assert (half["r_at_most"], half["chunks"], half["clusters"], half["tokens"]) == (0.625, 1, 1, 7)
    assert half["on"]["bits_per_byte"] == pytest.approx(1 / math.log(2))
    assert half["on"]["bits_per_byte_standard_error"] is None
