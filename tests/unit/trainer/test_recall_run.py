"""The run of `task: recall`: batches, Muon, grading by a known reader, resume to the bit, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml

from openbook_core.errors import ConfigError, CorruptError, InputError, OpenbookError
from openbook_model import RetroModel, load, weights_hash
from openbook_trainer.app import main
from openbook_trainer.finder import FindNeighbors
from openbook_trainer.muon import Muon, orthogonal
from openbook_trainer.recall import answers as answers_module
from openbook_trainer.recall import run as run_module
from openbook_trainer.recall.answers import grade, grade_seen
from openbook_trainer.recall.batches import IGNORED, to_batch
from openbook_trainer.recall.config import RecallConfig
from openbook_trainer.recall.report import figures_of
from openbook_trainer.recall.run import answer_loss, run_recall
from openbook_trainer.recall.source import Question
from openbook_trainer.recall.worlds import BESIDE, Worlds, WorldsSettings
from openbook_trainer.tasks import run_in_one_process

ASKED_FOR = (r"[A-Z]\w+(?= have|\?)", r"\b[a-z]+(?= of| does)")
CONDITIONED = {"hidden_size": 32, "num_heads": 2, "conditioned": True}
EXAMPLES = Path(__file__).parents[3] / "examples" / "train"


def settings(out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": "recall",
        "out": str(out),
        "source": {"kind": "worlds", "facts": [1, 2]},
        "model": {
            "vocab_size": 800,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "chunk_length": 32,
            "neighbor_length": 32,
            "max_positions": 64,
            "cross_attention_layers": [1, 2],
            "encoder": {"hidden_size": 32, "num_heads": 2, "num_layers": 1},
        },
        "steps": 8,
        "batch": 4,
        "threads": 1,
        "autocast": False,
        "curriculum": {
            "levels": [{"neighbors": 1, "tokens": 16}, {"neighbors": 2, "tokens": 24}],
            "least": 0,
            "at_most": 3,
        },
        "optimiser": {"kind": "muon", "warmup_steps": 2},
        "evaluation": {"every": 0, "questions": 4, "final": 6, "max_tokens": 4},
        "log_every": 1,
        **changes,
    }


def config(out: Path, **changes: Any) -> RecallConfig:
    return RecallConfig.parse(settings(out, **changes))


def losses(out: Path) -> list[tuple[int, float, int]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(each["step"], each["loss"], each["level"]) for each in records if "loss" in each]


def test_the_loss_of_a_batch_is_that_of_its_rows_alone(tmp_path: Path) -> None:
    """No padding, and neighbours of another length, beside: so nothing of a batch mate is read."""
    chosen = config(tmp_path)
    worlds = Worlds.make(chosen.source, 0)
    questions = worlds.questions(Random(0), 6, 2, 24)
    model = RetroModel(chosen.model)
    run_module.initialise(model, 0)
    with torch.no_grad():
        batch = to_batch(questions, worlds.end, 32)
        whole = float(answer_loss(model, batch))
        alone = 0.0
        for each in questions:
            row = to_batch([each], worlds.end, 32)
            assert row.neighbor_ids_G1KR.shape == (1, 1, 2, max(map(len, each.passages)))
            alone += sum(
                float(
                    answer_loss(model, to_batch([replace(each, prompt=prompt, answer=answer, more=())], worlds.end, 32))
                )
                * (len(answer) + 1)
                for prompt, answer in each.asked
            )
        count = int((batch.labels_BT != IGNORED).sum())
    assert count == sum(len(answer) + 1 for each in questions for _, answer in each.asked)
    assert whole == pytest.approx(alone / count, abs=1e-5)


def test_the_first_answer_token_already_reads_the_neighbours(tmp_path: Path) -> None:
    chosen = config(tmp_path)
    model = RetroModel(chosen.model)
    run_module.initialise(model, 0)
    question = Question(prompt=[3, 4, 5], answer=[6], passages=[[7, 8, 9]], gold=0)
    changed = Question(prompt=[3, 4, 5], answer=[6], passages=[[7, 8, 10]], gold=0)
    logits = []
    for each in (question, changed):
        batch = to_batch([each], 0, 32)
        assert batch.labels_BT.tolist() == [[IGNORED, IGNORED, 6, 0]]
        with torch.no_grad():
            logits.append(model(batch.ids_BT, batch.neighbor_ids_G1KR, batch.lengths_G1K, first_chunk=batch.phases)[0])
    differs = (logits[0] != logits[1]).any(dim=1).tolist()
    assert differs == [False, False, True, True]


def test_a_prompt_that_would_not_be_answered_by_its_own_neighbours_is_refused() -> None:
    long = Question(prompt=list(range(30)), answer=[1, 2, 3], passages=[[1]], gold=0)
    with pytest.raises(InputError, match="33 tokens"):
        to_batch([long], 0, 32)


def reader(tokenizer: Any, says: Callable[[str, list[str]], str]) -> Callable[..., list[str]]:
    """In place of the model: what `says` makes of the prompt and of the passages that are really handed over."""

    def answer(model: Any, _: Any, prompts: list[list[int]], find: FindNeighbors | None, most: int) -> list[str]:
        texts = [tokenizer.decode(prompt) for prompt in prompts]
        found = None if find is None else find(texts)
        shown: list[list[str]] = [[] for _ in prompts]
        if found is not None:
            assert found.lengths_LK is not None
            for row, (ids_KR, lengths_K) in enumerate(zip(found.ids_LKR, found.lengths_LK, strict=True)):
                shown[row] = [tokenizer.decode(ids[:n].tolist()) for ids, n in zip(ids_KR, lengths_K, strict=True) if n]
        return [says(text, passages) for text, passages in zip(texts, shown, strict=True)]

    return answer


def copied(prompt: str, passages: Sequence[str]) -> str:
    """The value of the sentence that has the name and the attribute of the prompt."""
    name, attribute = (
        re.findall(pattern, prompt)[0] for pattern in (r"[A-Z]\w+(?= have|\?)", r"\b[a-z]+(?= of| does)")
    )
    sentences = [each for passage in passages for each in re.findall(r"[^.]+\.", passage)]
    return next((each.rstrip(".").split()[-1] for each in sentences if name in each and attribute in each), "?")


def test_grading_tells_readers_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = Worlds.make(WorldsSettings(), 0)
    pairs = worlds.held_out(Random(0), 60, 2, 64)

    def graded(says: Callable[[str, list[str]], str]) -> dict[str, float]:
        monkeypatch.setattr(answers_module, "answer", reader(worlds.tokenizer, says))
        return grade(None, worlds.tokenizer, pairs, 8)  # type: ignore[arg-type]

    perfect = {"matching": 1, "one": 1, "distractor": 0, "other": 1, "old": 0, "none": 0, "shuffled": 0}
    perfect |= {f"matching beside {kind}": 1 for kind in BESIDE}
    assert graded(copied) == perfect
    known = {worlds.tokenizer.decode(first.prompt): worlds.tokenizer.decode(first.answer).strip() for first, _ in pairs}
    remembering = graded(lambda prompt, passages: known[prompt])
    assert remembering == {**dict.fromkeys(perfect, 1), "distractor": 0, "other": 0}
    attribute_only = graded(by_attribute)
    assert attribute_only["one"] == 1
    assert attribute_only["distractor"] > 0.7
    assert attribute_only["matching"] == pytest.approx(1 - attribute_only["distractor"])
    assert attribute_only["matching beside alike"] == attribute_only["matching beside same attribute"] == 0
    assert attribute_only["matching beside other"] > 0.3
    monkeypatch.setattr(answers_module, "answer", reader(worlds.tokenizer, copied))
    assert grade_seen(None, worlds.tokenizer, worlds.questions(Random(1), 40, 2, 64), 8) == 1  # type: ignore[arg-type]


def by_attribute(prompt: str, passages: Sequence[str]) -> str:
    """Of the sentences with the attribute of the prompt one about another name, where there is one."""
    name, attribute = (re.findall(pattern, prompt)[0] for pattern in ASKED_FOR)
    sentences = [each for passage in passages for each in re.findall(r"[^.]+\.", passage) if f" {attribute}" in each]
    return min(sentences, key=lambda each: name in each, default="?").rstrip(".").split()[-1]


def test_muon_steps_as_torch_s_own() -> None:
    """Theirs orthogonalises in bfloat16, so equal to its precision."""
    torch.manual_seed(0)
    shapes = [(24, 8), (8, 24), (24, 8)]
    start = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(each.clone()) for each in start] for _ in range(2))
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    pair = (Muon(ours, **options), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options))
    for _ in range(3):
        gradients = [torch.randn(shape) for shape in shapes]
        for optimiser, parameters in zip(pair, (ours, theirs), strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimiser.step()
    for mine, other, begun in zip(ours, theirs, start, strict=True):
        moved = float((other - begun).detach().norm())
        assert float((mine - other).detach().norm()) < 0.02 * moved
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 16, 40)))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_what_only_pretraining_does_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--allow-changed: task recall"):
        run_in_one_process(config(tmp_path), ["seed"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="task recall runs in one process"):
        run_in_one_process(config(tmp_path), ())
    assert not (tmp_path / "checkpoint.pt").exists()


def test_two_halves_are_one_run_to_the_bit(tmp_path: Path) -> None:
    straight = run_recall(config(tmp_path / "straight"))
    run_recall(config(tmp_path / "halves", stop_at=5))
    resumed = run_recall(config(tmp_path / "halves"))
    same = ("weights_hash", "held_out", "steps", "decoder_tokens", "encoder_tokens")
    assert {name: resumed[name] for name in same} == {name: straight[name] for name in same}
    assert losses(tmp_path / "halves") == losses(tmp_path / "straight")
    assert [level for _, _, level in losses(tmp_path / "straight")][:3] == [0, 0, 0]
    assert 1 in {level for _, _, level in losses(tmp_path / "straight")}
    assert weights_hash(load(tmp_path / "straight" / "model")) == straight["weights_hash"]
    assert json.loads((tmp_path / "straight" / "summary.json").read_text())["weights_hash"] == straight["weights_hash"]


def test_held_out_questions_are_looked_at_only_at_the_end(tmp_path: Path) -> None:
    chosen = config(tmp_path, evaluation={"every": 4, "questions": 4, "final": 6, "max_tokens": 4})
    summary = run_recall(chosen)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in records if "validation" in each] == [4, 8]
    assert [each["held_out"] for each in records if "held_out" in each] == [summary["held_out"]]
    assert summary["held_out"]["questions"] == 6
    curve = figures_of(chosen, live={})["curve"]
    assert [(each["step"], each["questions"]) for each in curve] == [(4, 4), (8, 4)]


def test_what_a_checkpoint_was_made_with_is_asked_for(tmp_path: Path) -> None:
    run_recall(config(tmp_path, stop_at=1))
    with pytest.raises(ConfigError, match="batch: now 5, then 4"):
        run_recall(config(tmp_path, batch=5))
    with pytest.raises(ConfigError, match="source_digest"):
        run_recall(config(tmp_path, source={"kind": "worlds", "facts": [1, 3]}))
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CorruptError, match="cannot be read"):
        run_recall(config(tmp_path))


def test_a_loss_that_is_not_finite_stops_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = run_module.answer_loss, iter(range(100))
    monkeypatch.setattr(
        run_module, "answer_loss", lambda *given: real(*given) * (float("nan") if next(count) == 2 else 1.0)
    )
    with pytest.raises(OpenbookError, match="step 3: the loss is nan"):
        run_recall(config(tmp_path))
    monkeypatch.setattr(run_module, "answer_loss", real)
    assert run_recall(config(tmp_path, stop_at=3))["steps"] == 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"steps": 2}, "warmup_steps"),
        ({"optimiser": {"average_decay": 0.9}}, "optimiser.average_decay: task recall"),
        ({"optimiser": {"max_bad_steps": 2}}, "optimiser.max_bad_steps: task recall"),
        ({"curriculum": {"levels": [{"neighbors": 3, "tokens": 8}]}}, "neighbors"),
        ({"curriculum": {"levels": [{"neighbors": 1, "tokens": 33}]}}, "neighbor_length"),
        ({"model": {**settings(Path())["model"], "encoder": CONDITIONED}}, "source.questions: 4"),
        ({"sourc": {}}, "source"),
        ({"model": {**settings(Path())["model"], "vocab_size": 512}}, "model.vocab_size"),
    ],
)
def test_impossible_settings_are_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        run_recall(config(tmp_path, **changes))


def test_the_command_runs_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings(tmp_path / "out")))
    assert main(["--config", str(tmp_path / "run.yaml"), "--set", "stop_at=1"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 1
    assert main(["--config", str(EXAMPLES / "synthetic-worlds.yaml"), "--print-config"]) == 0
    assert "curriculum.below" in capsys.readouterr().out
