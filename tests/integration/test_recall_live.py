"""Two worlds behind real retriever processes: a reader that copies what it is handed knows the book that is live."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from openbook_core.clients import AdminClient
from openbook_core.errors import MismatchError
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_model import RetroConfig, RetroModel, initialise
from openbook_trainer.finder import FindNeighbors
from openbook_trainer.recall import live
from openbook_trainer.recall.worlds import FACTS, Worlds, WorldsSettings

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, TinyEncoder

MODEL = {
    "vocab_size": 1024,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "max_positions": 64,
    "neighbor_length": 64,
}
MODEL |= {"cross_attention_layers": (2,), "encoder": {"hidden_size": 16, "num_heads": 2, "num_layers": 1}}


def reading(model: RetroModel, tokenizer: Any, prompts: list[list[int]], find: FindNeighbors | None, most: int) -> Any:
    """The value of the first sentence that has name and attribute of the question, word for word as the worlds say it."""
    if find is None:
        return ["?"] * len(prompts)
    questions = [tokenizer.decode(prompt) for prompt in prompts]
    found = find(questions)
    assert found.lengths_LK is not None
    answers = []
    for question, ids_KR, lengths_K in zip(questions, found.ids_LKR.tolist(), found.lengths_LK.tolist(), strict=True):
        text = " ".join(tokenizer.decode(ids[:length]) for ids, length in zip(ids_KR, lengths_K, strict=True))
        words = question.rstrip("?").split()
        attribute, name = (words[3], words[5]) if words[0] == "What" else (words[1], words[3])
        starts = [fact.format(attribute=attribute, name=name, value="\n").partition("\n")[0] for fact in FACTS]
        start = next((each for each in starts if each in text), None)
        answers.append("?" if start is None else text.partition(start)[2].partition(".")[0])
    return answers


def test_answers_move_with_the_book_and_weights_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = Worlds.make(WorldsSettings(), 0)
    books = worlds.books(Random(2), 40)
    snapshots = []
    for name, rows in zip("ab", books.documents, strict=True):
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = BuildSettings(golden_queries=2)
        snapshots.append(
            build_snapshot(
                [source],
                tmp_path / name,
                database=DATABASE,
                tokenizer=worlds.tokenizer,
                encoder=TinyEncoder(),
                settings=settings,
            )
        )
    model = RetroModel(RetroConfig.parse(MODEL))
    initialise(model, 0)
    embedder = support.start_embedder()
    try:
        with support.cluster(tmp_path, tmp_path / "registry", router=("--embedder", embedder.address)) as processes:
            address = processes[0].address
            with AdminClient(address) as admin:
                for each in snapshots:
                    admin.register(DATABASE, str(each.path))

                def make_live(book: int) -> str:
                    support.move(admin, snapshots[book].snapshot_id)
                    return snapshots[book].snapshot_id

                given = (worlds.tokenizer, books.questions, address, DATABASE, make_live, 6)
                with monkeypatch.context() as patched:
                    patched.setattr(live, "answer", reading)
                    read = live.ask_books(model, *given)
                found = live.ask_books(model, *given)
                wrong = RetroModel(RetroConfig.parse({**MODEL, "chunk_length": 16}))
                initialise(wrong, 0)
                with pytest.raises(MismatchError, match="chunk_length"):
                    live.ask_books(wrong, *given)
    finally:
        embedder.stop(0)
    assert [book["snapshot"] for book in read["books"]] == [each.snapshot_id for each in snapshots]
    for book, other in zip(read["books"], found["books"], strict=True):
        assert book["retrieved"] > 0.5
        assert book["matching"] == pytest.approx(book["retrieved"], abs=0.05)
        assert book["matching_of_retrieved"] > 0.95
        assert (book["old"], other["matching"], other["old"]) == (0, 0, 0)
        assert other["retrieved"] == book["retrieved"]
    assert read["questions"] == 80
    assert read["none"] == 0
    assert read["shuffled"] < 0.05
    assert found["weights_hash_before"] == found["weights_hash_after"] == read["weights_hash_after"]
