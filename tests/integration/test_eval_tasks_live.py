"""`evaluate` over real retriever processes: closed-book, OFF and ON of a random model, a kill, and other settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core.clients import AdminClient
from openbook_core.errors import ArgumentError, ConfigError, ConflictError
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.snapshot import Snapshot
from openbook_model.adapter import save_adapter
from openbook_prompt.settings import PromptSettings
from openbook_trainer.eval.metrics import exact_match
from openbook_trainer.eval.tasks.decoding import Decoder
from openbook_trainer.eval.tasks.questions import find_task, read_documents
from openbook_trainer.eval.tasks.run import evaluate
from openbook_trainer.eval.tasks.settings import TasksConfig

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, TinyEncoder, tiny_tokenizer
from tasks_support import save_model, write_task

M = 32
RIVERS = {"Nile": "Egypt", "Seine": "France", "Ebro": "Spain", "Volga": "Russia", "Tagus": "Portugal"}


@pytest.fixture
def config(tmp_path: Path) -> Iterator[TasksConfig]:
    """Five questions, each on a document of its own, and a random model whose cross attention is on."""
    write_task(tmp_path, RIVERS)
    documents = [asdict(document) for document in read_documents(find_task("nq"), tmp_path)]
    source = tmp_path / "rivers.jsonl"
    source.write_text("".join(json.dumps(document) + "\n" for document in documents))
    settings = BuildSettings(chunk_length=M, shards=support.SHARDS, golden_queries=2)
    snapshot = build_snapshot(
        [source],
        tmp_path / "book",
        database=DATABASE,
        tokenizer=tiny_tokenizer(),
        encoder=TinyEncoder(),
        settings=settings,
    )
    save_model(tmp_path / "model", M)
    embedder = support.start_embedder()
    try:
        with support.cluster(tmp_path, tmp_path / "registry", router=("--embedder", embedder.address)) as processes:
            _make_live(processes[0].address, snapshot.path, snapshot.snapshot_id)
            yield TasksConfig(
                model=str(tmp_path / "model"),
                tasks=("nq",),
                data=tmp_path,
                out=tmp_path / "out",
                retriever=processes[0].address,
                databases={"nq": DATABASE},
                k=2,
                batch=2,
                max_tokens=40,
            )
    finally:
        embedder.stop(0)


def _make_live(address: str, path: Path, snapshot: str) -> None:
    with AdminClient(address) as admin:
        admin.register(DATABASE, str(path))
        support.move(admin, snapshot)


def test_three_sides_a_kill_and_other_settings(config: TasksConfig) -> None:
    figures = evaluate(config)
    task, folder = figures["tasks"]["nq"], config.out / "answers" / "nq"
    files = {side: (folder / f"{side}.jsonl").read_text(encoding="utf-8") for side in ("closed-book", "off", "on")}
    assert figures["cross_attention"] == "on"
    assert len(set(files.values())) == 3
    for side, text in files.items():
        rows = [json.loads(line) for line in text.splitlines()]
        wanted = sum(exact_match(row["prediction"], row["answers"]) for row in rows) / len(RIVERS)
        assert task["sides"][side]["count"] == len(rows) == len(RIVERS)
        assert task["sides"][side]["exact_match"] == wanted
    found = [json.loads(line) for line in (folder / "passages.jsonl").read_text(encoding="utf-8").splitlines()]
    assert task["ceiling"]["in_passages"] == sum(row["in_passages"] for row in found) / len(RIVERS)
    assert task["ceiling"]["evidence"] > 0.5

    # As a kill would leave it: ON has two answers and a half of the third.
    lines = files["on"].splitlines(keepends=True)
    (folder / "on.jsonl").write_text("".join(lines[:2]) + lines[2][:15], encoding="utf-8")
    steps: list[tuple[str, int, int]] = []
    assert evaluate(config, lambda *step: steps.append(step)) == figures
    assert steps == [("nq on", 4, 5), ("nq on", 5, 5)]
    assert (folder / "on.jsonl").read_text(encoding="utf-8") == files["on"]

    with pytest.raises(ConflictError, match="max_tokens: 40 there, 8 now"):
        evaluate(config.model_copy(update={"max_tokens": 8}))


def test_the_chosen_sides_are_asked_and_others_may_follow(config: TasksConfig) -> None:
    folder = config.out / "answers" / "nq"
    off = evaluate(config.model_copy(update={"sides": ("off",)}))
    assert {path.stem for path in folder.glob("*.jsonl")} == {"passages", "off"}
    everything = evaluate(config)
    assert off["sides"] == ["off"]
    sides = everything["tasks"]["nq"]["sides"]
    assert off["tasks"]["nq"] == {**everything["tasks"]["nq"], "sides": {**dict.fromkeys(sides), "off": sides["off"]}}
    assert None not in sides.values()


def test_a_task_or_model_without_any_of_the_sides(config: TasksConfig, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="task nq-open has the side closed-book only"):
        evaluate(config.model_copy(update={"tasks": ("nq-open",), "sides": ("off", "on")}))
    save_model(tmp_path / "shut", M, gate=0.0)
    with pytest.raises(ArgumentError, match=r"cross attention is off \(gate 0\)"):
        evaluate(config.model_copy(update={"model": str(tmp_path / "shut"), "sides": ("on",)}))
    with pytest.raises(ConfigError, match="sides"):
        TasksConfig.parse({**config.model_dump(mode="json"), "sides": ["open"]}, source="a test")


def test_an_adapter_changes_the_answers_and_brings_its_prompt(config: TasksConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair = (torch.randn(4, 16), torch.randn(16, 4))
    stored = {"extracts": 2, "lead_in": False}
    save_adapter(tmp_path / "adapter", {"blocks.0.attention.output": pair}, 4, 8, "tiny", stored)
    asked = {"prompt": PromptSettings(extracts=3), "out": tmp_path / "adapted", "adapter": tmp_path / "adapter"}
    bare, adapted = evaluate(config), evaluate(config.model_copy(update=asked))
    assert adapted["prompt"] == PromptSettings(extracts=3, lead_in=False).model_dump()
    assert bare["adapter"] is None
    assert len(adapted["adapter"]["blake3"]) == 64
    assert bare["weights_hash"] != adapted["weights_hash"]
    with pytest.raises(ConflictError, match="adapter: None there"):
        evaluate(config.model_copy(update={"adapter": tmp_path / "adapter"}))


def test_the_closed_book_question_is_asked_for_a_short_answer_unless_alone(
    config: TasksConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str] = []
    answers = Decoder.answers

    def spied(self: Decoder, asked: list[list[int]], max_tokens: int) -> list[str]:
        prompts.extend(tiny_tokenizer().decode(prompt) for prompt in asked)
        return answers(self, asked, max_tokens)

    monkeypatch.setattr(Decoder, "answers", spied)
    write_task(tmp_path, RIVERS, "What is the land of the {}?")
    for number, instruction in enumerate(("Be brief.", "")):
        changes = {"closed_instruction": instruction, "limit": 1, "out": config.out / str(number)}
        evaluate(config.model_copy(update=changes))
    asked, alone = prompts[0], prompts[3]
    lead = f"The land of the {alone.partition('?')[0].split()[-1]} is"
    assert asked == alone.replace("\nAnswer:", "\nBe brief.\nAnswer:") + lead
    assert "The river" not in asked
    assert prompts[1] == prompts[4]
    assert "The river" in prompts[1]


def test_the_command_takes_a_database_that_is_served(config: TasksConfig, tmp_path: Path) -> None:
    live = Snapshot.open(tmp_path / "book").id
    words = {"--model": config.model, "--data": config.data, "--out": config.out, "--json": tmp_path / "figures.json"}
    words |= {"--database": DATABASE, "--retriever": config.retriever, "--limit": 2, "--max-tokens": 4, "--k": 2}
    options = [str(word) for pair in words.items() for word in pair]
    done = CliRunner().invoke(app, ["eval", "tasks", "--tasks", "nq", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    task = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["tasks"]["nq"]
    assert (task["database"], task["snapshot"], task["questions"]) == (DATABASE, live, 2)
    assert task["sides"]["on"]["count"] == 2
    assert not (config.out / "books").exists()
