"""Documents of OpenStax and Wikipedia for `language.py`: some held out, the rest to train on, and a tokenizer of their own.

Sections of OpenStax are documents as they are; of Wikipedia all paragraphs under one title are one, each paragraph once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

VOCABULARY = 4096
_SPLIT = "held out of results-language:"


@dataclass(frozen=True)
class Size:
    """`held_out` documents of each corpus, each cut to `held_out_characters`; `characters` of text to train on."""

    held_out: int
    held_out_characters: int
    characters: int


def write_corpus(data: Path, work: Path, size: Size) -> dict[str, int]:
    """Write held-out.jsonl, candidates.jsonl and tokenizer/ to `work`; the numbers of documents and characters.

    Both choices are by a hash of the id alone. Raises InputError for a file that cannot be read.
    """
    from openbook_core.tokenizer import Tokenizer

    corpora = [list(_openstax(data)), list(_wikipedia(data))]
    held_out, rest = [], []
    for corpus in corpora:
        ordered = sorted(corpus, key=lambda row: sha256(f"{_SPLIT}{row['id']}".encode()).digest())
        held_out += [{**row, "text": row["text"][: size.held_out_characters]} for row in ordered[: size.held_out]]
        rest += ordered[size.held_out :]
    rest.sort(key=lambda row: sha256(row["id"].encode()).digest())
    candidates, characters = [], 0
    for row in rest:
        if characters >= size.characters:
            break
        candidates.append(row)
        characters += len(row["text"])
    _write(work / "held-out.jsonl", held_out)
    _write(work / "candidates.jsonl", candidates)
    Tokenizer(_trained(row["text"] for row in candidates), eos_token="<|end|>").save(work / "tokenizer")
    return {"held_out": len(held_out), "candidates": len(candidates), "characters": characters}


def keep(work: Path, book: Path) -> int:
    """Write train.jsonl: of the candidates those that the book holds, so neither duplicates nor what overlaps with a
    held-out text. Their number."""
    from openbook_database.snapshot import Snapshot

    documents = Snapshot.open(book).documents
    rows = [json.loads(line) for line in (work / "candidates.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if documents.number(row["id"]) is not None]
    _write(work / "train.jsonl", kept)
    return len(kept)


def _openstax(data: Path) -> Iterator[dict[str, str]]:
    for row in _rows(data / "openstax" / "modules.jsonl.zst"):
        yield {"id": row["id"], "title": row["title"], "text": row["text"], "licence": row["license"]}


def _wikipedia(data: Path) -> Iterator[dict[str, str]]:
    paragraphs: dict[str, dict[str, str]] = {}
    for row in _rows(data / "wikipedia" / "paragraphs.jsonl.zst"):
        paragraphs.setdefault(row["title"], {}).setdefault(row["text"], row["license"])
    for title, texts in paragraphs.items():
        licence = ", ".join(sorted(set(texts.values())))
        yield {"id": f"wikipedia/{title}", "title": title, "text": "\n\n".join(texts), "licence": licence}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    from openbook_database.streams import read_lines

    return (json.loads(line) for line in read_lines(path))


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _trained(texts: Iterator[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return raw
