"""Instruction tuning with a retriever: passages in the prompt, neighbours in the cross attention, one book per data set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from trainer_fakes import SNAPSHOT, FakeRetriever, M, Servicer, byte_tokenizer, serve_retriever

from openbook_core.errors import ConfigError, CorruptError, InputError, UnavailableError
from openbook_model import EncoderConfig, RetroConfig, RetroModel, initialise, load, save
from openbook_model.checkpoint import read_prompt
from openbook_model.chunks import chunks_due, default_first_chunk
from openbook_trainer.sft.batches import Batches
from openbook_trainer.sft.config import SftConfig
from openbook_trainer.sft.packing import Packed
from openbook_trainer.sft.run import packed_loss, run_sft

KEEPERS = {"old": "Ada", "new": "Bob"}
HOUSES = 8


def keeper(database: str, query: str) -> str:
    """The book of even houses; those of odd ones it does not know."""
    asked = re.search(r"house ([0-9]+)", query)
    if asked is None or int(asked[1]) % 2:
        return "No house is odd."
    return f"The keeper of house {asked[1]} is {KEEPERS[database]} {asked[1]}."


@pytest.fixture
def book() -> Iterator[tuple[Servicer, str]]:
    servicer = Servicer(keeper)
    server = serve_retriever(servicer)
    yield servicer, server.address
    server.stop()


def network(folder: Path, gate: float, *, conditioned: bool = False) -> RetroModel:
    config = RetroConfig(
        vocab_size=257,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        max_positions=1024,
        chunk_length=M,
        cross_attention_layers=(1, 2),
        gate=gate,
        encoder=EncoderConfig(num_layers=1, hidden_size=32, num_heads=2, conditioned=conditioned),
    )
    model = RetroModel(config)
    initialise(model, 0)
    byte_tokenizer().save(folder / "tokenizer")
    save(model, folder / "model", folder / "tokenizer")
    return model.eval()


def settings(folder: Path, address: str, **changes: Any) -> SftConfig:
    """Questions on houses 0 to 7 from two books; the run's own is `old`."""
    sets = []
    for name, database in (("old", ""), ("new", "new")):
        rows = [
            {"question": f"Who is the keeper of house {n}?", "answer": f"{KEEPERS[name]} {n}"} for n in range(HOUSES)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sets.append({"path": str(folder / f"{name}.jsonl"), "format": "pairs", "weight": 0.5, "database": database})
    (folder / "blend.yaml").write_text(json.dumps({"datasets": sets}))
    values = {
        "task": "sft",
        "out": folder / "out",
        "model": str(folder / "model"),
        "blend": folder / "blend.yaml",
        "steps": 3,
        "examples": 6,
        "row_tokens": 900,
        "passages": {"address": address, "database": "old", "k": 3},
    }
    return SftConfig.parse(values | changes)


def examples(packed: Packed) -> Iterator[tuple[Packed, torch.Tensor]]:
    """Each row with the positions of each of its examples."""
    for row in packed.rows():
        for number in sorted(set(row.documents_BT.unique().tolist()) - {-1}):
            yield row, row.documents_BT == number


def test_each_data_set_reads_its_own_book_and_what_it_does_not_answer_is_left_out(
    tmp_path: Path, book: tuple[Servicer, str]
) -> None:
    servicer, address = book
    model, tokenizer = network(tmp_path, 0.0), byte_tokenizer()
    batches = Batches(settings(tmp_path, address), model, tokenizer)
    seen, left_out = [], 0
    for step in range(4):
        batch = batches.at(step)
        left_out += batch.left_out
        assert batch.examples + batch.left_out == 6
        assert batch.packed is not None
        for row, own_BT in examples(batch.packed):
            text = tokenizer.decode(row.ids_BT[own_BT].tolist(), skip_special=True)
            labels = row.labels_BT[own_BT]
            answer = tokenizer.decode(labels[labels != -100].tolist(), skip_special=True).strip()
            assert f"The keeper of house {answer[4:]} is {answer}." in text
            seen.append(answer)
    batches.close()
    assert {name for name, _ in map(str.split, seen)} == {"Ada", "Bob"}
    assert all(int(number) % 2 == 0 for _, number in map(str.split, seen))
    assert left_out > 0
    assert set(servicer.asked) == {("old", 3, SNAPSHOT), ("new", 3, SNAPSHOT)}


@pytest.mark.parametrize("conditioned", [False, True])
def test_packed_examples_read_the_neighbours_that_serving_finds(
    tmp_path: Path, book: tuple[Servicer, str], conditioned: bool
) -> None:
    model, tokenizer, found = network(tmp_path, 0.8, conditioned=conditioned), byte_tokenizer(), FakeRetriever()
    config = settings(tmp_path, book[1])
    with pytest.raises(ConfigError, match=r"set passages\.address"):
        run_sft(config.model_copy(update={"passages": None}))
    batches = Batches(config, model, tokenizer)
    packed = batches.at(0).packed
    batches.close()
    assert packed is not None
    separate, k, databases = 0.0, model.config.num_neighbors, set()
    with torch.no_grad():
        for row, own_BT in examples(packed):
            ids, labels = row.ids_BT[own_BT], row.labels_BT[own_BT]
            phase = default_first_chunk(int((labels != -100).nonzero()[0]) + 1, M)
            texts = [tokenizer.decode(each, skip_special=True) for each in chunks_due(ids.tolist(), 0, phase, M)]
            database = "new" if "Bob" in tokenizer.decode(ids.tolist()) else "old"
            chunks = found.search_text(database, texts, k).chunks
            assert chunks.tokens is not None
            assert chunks.lengths is not None
            found_ids = torch.tensor(chunks.tokens.astype("int64")).view(1, len(texts), k, 2 * M)
            lengths = torch.tensor(chunks.lengths.astype("int64").sum(1)).view(1, len(texts), k)
            logits = model(ids[None], found_ids, lengths, first_chunk=phase)[0]
            separate += float(cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            databases.add(database)
        together = sum(float(packed_loss(model, row)) for row in packed.rows())
        bare = Packed(packed.ids_BT, packed.labels_BT, packed.documents_BT)
        alone = sum(float(packed_loss(model, row)) for row in bare.rows())
    assert databases == {"old", "new"}
    assert together == pytest.approx(separate, rel=1e-5)
    assert abs(alone - separate) > 1e-4 * separate, "neighbours matter"


def test_a_run_counts_what_it_left_out_and_wants_the_same_snapshots(tmp_path: Path, book: tuple[Servicer, str]) -> None:
    servicer, address = book
    network(tmp_path, 0.0)
    config = settings(tmp_path, address, lora=None, prompt={"extracts": 2}, stop_at=1)
    servicer.unavailable = 2
    first = run_sft(config)
    assert first["examples"] + first["left_out"] == 6
    assert first["snapshots"] == {"old": SNAPSHOT, "new": SNAPSHOT}
    assert read_prompt(tmp_path / "out" / "model") == config.prompt.model_dump()
    assert isinstance(load(tmp_path / "out" / "model"), RetroModel)
    servicer.snapshot = "snapshot-2"
    with pytest.raises(ConfigError, match=r"snapshots\.new: now 'snapshot-2', then 'snapshot-1'"):
        run_sft(config.model_copy(update={"stop_at": None}))
    servicer.snapshot, servicer.unavailable = SNAPSHOT, 99
    with pytest.raises(UnavailableError):
        run_sft(config.model_copy(update={"stop_at": None}))
    servicer.unavailable = 0
    assert run_sft(config.model_copy(update={"stop_at": None}))["steps"] == 3
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"PK damaged")
    with pytest.raises(CorruptError, match="delete it to begin again"):
        run_sft(config)


def test_a_book_that_answers_nothing_is_no_success(tmp_path: Path, book: tuple[Servicer, str]) -> None:
    servicer, address = book
    network(tmp_path, 0.0)
    servicer.passage = lambda database, query: "Nothing of it."
    with pytest.raises(InputError, match="none of 18 examples could be learnt from"):
        run_sft(settings(tmp_path, address))
    assert not (tmp_path / "out" / "adapter").exists()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert losses == [None, None, None]


def test_an_example_longer_than_a_row_is_named_before_the_first_step(
    tmp_path: Path, book: tuple[Servicer, str]
) -> None:
    _, address = book
    network(tmp_path, 0.8)
    with pytest.raises(InputError, match=r"data set 1 of .*Who is the keeper.* fit into a row; raise row_tokens"):
        run_sft(settings(tmp_path, address, row_tokens=40))
    with pytest.raises(InputError, match="data set 1 of .*: all 8 examples are longer"):
        run_sft(settings(tmp_path, address, row_tokens=40, too_long="leave out"))
    for tokens in (2 * M - 2, 2000):
        with pytest.raises(ConfigError, match=f"row_tokens is {tokens}; this model takes {2 * M - 1} to 1024"):
            run_sft(settings(tmp_path, address, row_tokens=tokens))
    assert not (tmp_path / "out").exists()
