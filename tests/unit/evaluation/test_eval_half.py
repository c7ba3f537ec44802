"""Half of a database through a retriever that serves the whole, against a database that holds just that half."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

import numpy as np
import pytest
from book_fake import Book, BookServicer, serve_book
from trainer_fakes import SNAPSHOT

from openbook_core.clients import RetrieverClient, SearchResult
from openbook_trainer.eval.half import HalfOfDatabase, in_half

DRAW = random.Random(3)
BOOK = Book({f"d{n}": "".join(DRAW.choices(string.ascii_lowercase, k=DRAW.randint(5, 90))) for n in range(60)})
# Documents outside of the half that hold just what is asked, ten chunks each, stand before all of its own.
QUERY = string.ascii_lowercase[:8]
OUTSIDE = [name for name in (f"z{n}" for n in range(500)) if not in_half(name)]


@pytest.fixture(name="served")
def served_book() -> Iterator[tuple[RetrieverClient, BookServicer]]:
    servicer = BookServicer(BOOK)
    server = serve_book(servicer)
    with RetrieverClient(server.address) as client:
        yield client, servicer
    server.stop(0)


def search(api: HalfOfDatabase, texts: list[str], k: int, exclude: list[list[str]] | None = None) -> SearchResult:
    return api.search_text("book", texts, k, snapshot=SNAPSHOT, exclude=exclude, tokens=True, documents=True)


def check(found: SearchResult, book: Book, texts: list[str], k: int, exclude: list[list[str]]) -> None:
    """As a book of the half alone answers, whose chunks are compared by document and tokens."""
    half = Book({name: text for name, text in book.documents.items() if in_half(name)})
    assert found.chunks.tokens is not None
    assert found.chunks.lengths is not None
    for query, text in enumerate(texts):
        wanted = [half.rows[place] for place in half.search(text, k, frozenset(exclude[query]))]
        rows = [row for row in found.row_of[query].tolist() if row >= 0]
        assert (found.ids[query] >= 0).sum() == len(rows) == len(wanted)
        assert [found.chunks.documents[row].external_id for row in rows] == [row.external_id for row in wanted]
        np.testing.assert_array_equal(found.chunks.tokens[rows], [row.tokens for row in wanted])
        np.testing.assert_array_equal(found.chunks.lengths[rows], [row.lengths for row in wanted])


def test_about_half_of_many_ids() -> None:
    assert 450 < sum(in_half(f"document {number}") for number in range(1000)) < 550


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_half_answers_as_if_it_were_alone(served: tuple[RetrieverClient, BookServicer], k: int) -> None:
    half = HalfOfDatabase(served[0])
    texts = ["".join(DRAW.choices(string.ascii_lowercase, k=8)) for _ in range(20)]
    exclude = [[f"d{number}"] for number in range(20)]
    check(search(half, texts, k, exclude), BOOK, texts, k, exclude)
    assert half.short == 0


@pytest.mark.parametrize(("outside", "fetched"), [(1, 16), (5, 128), (30, 1000)])
def test_more_is_fetched_until_the_half_has_k(
    served: tuple[RetrieverClient, BookServicer], outside: int, fetched: int
) -> None:
    client, servicer = served
    servicer.book = Book({**dict.fromkeys(OUTSIDE[:outside], 10 * QUERY), **BOOK.documents})
    half = HalfOfDatabase(client)
    texts = [QUERY, QUERY[::-1], "another"]
    check(search(half, texts, 2), servicer.book, texts, 2, [[]] * 3)
    assert servicer.largest == fetched
    assert half.short == 0


def test_a_query_that_finds_too_few_among_the_most_is_counted(served: tuple[RetrieverClient, BookServicer]) -> None:
    client, servicer = served
    servicer.book = Book({**dict.fromkeys(OUTSIDE[:100], 10 * QUERY), **BOOK.documents})
    half = HalfOfDatabase(client)
    found = search(half, [QUERY, "vwxyzvwxyz"], 2)
    assert (found.ids >= 0).tolist() == [[False, False], [True, True]]
    assert found.row_of.tolist() == [[-1, -1], [0, 1]]
    search(half, [QUERY], 2)
    assert half.short == 2


def test_a_half_with_less_than_k_chunks_is_not_short(served: tuple[RetrieverClient, BookServicer]) -> None:
    servicer = served[1]
    servicer.book = Book(dict.fromkeys(("d1", "d2", "d3"), "a few words of text"))
    kept = [name for name in servicer.book.documents if in_half(name)]
    half = HalfOfDatabase(served[0])
    check(search(half, ["words"], 9, [[]]), servicer.book, ["words"], 9, [[]])
    assert len(kept) * 3 < 9
    assert half.short == 0
