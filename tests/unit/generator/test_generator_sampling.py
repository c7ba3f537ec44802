"""Sampling against the distribution it must follow, and stop strings across pieces."""

from __future__ import annotations

import pytest
import torch

from openbook_generator.sampling import Sampler, TextStream


def test_greedy_is_the_largest_logit() -> None:
    assert Sampler().choose(torch.tensor([0.1, 3.0, 2.0])) == 1


def test_a_seed_repeats_the_choices() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    first, second = Sampler(1.0, 1.0, 7), Sampler(1.0, 1.0, 7)
    assert [first.choose(logits) for _ in range(20)] == [second.choose(logits) for _ in range(20)]


def test_frequencies_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(1.0, 1.0, 3)
    counts = torch.bincount(torch.tensor([sampler.choose(probabilities.log()) for _ in range(4000)]), minlength=4)
    assert torch.allclose(counts / 4000, probabilities, atol=0.03)


@pytest.mark.parametrize(("top_p", "allowed"), [(0.01, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2})])
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, allowed: set[int]) -> None:
    sampler = Sampler(1.0, top_p, 3)
    assert {sampler.choose(torch.tensor([0.5, 0.3, 0.15, 0.05]).log()) for _ in range(400)} == allowed


def test_a_stop_string_across_pieces_is_not_sent() -> None:
    stream, text, sent = TextStream(("END",)), "abEcENDxyz", ""
    for end in range(1, len(text) + 1):
        sent += stream.push(text[:end], last=False)
        if stream.stopped:
            break
    assert (sent, stream.stopped) == ("abEc", True)


def test_what_was_held_back_comes_with_the_last_piece() -> None:
    stream = TextStream(("END",))
    assert stream.push("abEN", last=False) == "ab"
    assert stream.push("abEN\ufffd", last=True) == "EN\ufffd"
