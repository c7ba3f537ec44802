"""Retrofit: step 0 is the base, a frozen base stays as it is, a free one learns at its own rate. And the GPT twin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from trainer_fakes import FakeRetriever, M, byte_tokenizer, settings, write_corpus

from openbook_core.config import render_config
from openbook_core.errors import ConfigError, InputError, MismatchError, NotFoundError, OpenbookError
from openbook_model import RetroConfig, RetroModel, initialise, load, save, weights_hash
from openbook_model.convert.huggingface import retro_parts
from openbook_trainer import app
from openbook_trainer.config import TrainConfig, load_train_config
from openbook_trainer.optimiser import make_optimisers
from openbook_trainer.retrofit import rate_scale, starting_model

DECODER = {
    "vocab_size": 260,
    "hidden_size": 16,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "norm": "rmsnorm",
    "chunk_length": M,
    "max_positions": 64,
}
ADDED = {"cross_attention_layers": [2, 3], "encoder": {"hidden_size": 8, "num_heads": 2, "num_layers": 1}}


def write_base(folder: Path, name: str = "base", *, gate_value: float = 0.0, **changes: Any) -> Path:
    """A decoder with noise in every weight but the gates, as a folder of ours with the corpus's tokenizer."""
    model = RetroModel.allocate(RetroConfig.parse({**DECODER, "cross_attention_layers": [], **changes}))
    initialise(model, 11)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            if key.endswith(".gate"):
                parameter.fill_(gate_value)
    save(model, folder / name, folder / "tokenizer")
    return folder / name


def values(
    folder: Path, rate: float | None = None, model: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """A run that starts from the base in `folder`."""
    found = settings(folder, **changes)
    found["corpus"].pop("tokenizer")
    init = {"from": str(folder / "base"), "base_learning_rate": rate}
    return {**found, "init": init, "model": ADDED if model is None else model}


def run(folder: Path, out: str, rate: float | None = None, **changes: Any) -> dict[str, Any]:
    return app.train(TrainConfig.parse(values(folder, rate, out=str(folder / out), **changes)))


def logits(model: RetroModel, *, on: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    ids_BT = torch.randint(0, 257, (2, 4 * M), generator=generator)
    found_BLKR = torch.randint(0, 257, (2, 4, 2, 2 * M), generator=generator)
    with torch.no_grad():
        found: torch.Tensor = model.eval()(ids_BT, found_BLKR if on else None, first_chunk=M)
    return found


def moved(folder: Path, out: str) -> dict[str, float]:
    """By how much each parameter of the base is another one in the finished model; new ones are not there."""
    base = dict(load(folder / "base").named_parameters())
    trained = load(folder / out / "model").named_parameters()
    return {name: float((value - base[name]).abs().max().detach()) for name, value in trained if name in base}


@pytest.mark.parametrize("gate", ["learned", 1.0])
@pytest.mark.parametrize("conditioned", [False, True])
def test_step_0_is_the_base(tmp_path: Path, gate: str | float, conditioned: bool) -> None:
    write_corpus(tmp_path)
    base = load(write_base(tmp_path))
    encoder = {**ADDED["encoder"], "conditioned": conditioned}  # type: ignore[dict-item]
    changes = {**ADDED, "gate": gate, "encoder": encoder}
    model, base_hash = starting_model(TrainConfig.parse(values(tmp_path, model=changes)), byte_tokenizer())
    assert base_hash == weights_hash(base)
    for on in (False, True):
        assert torch.equal(logits(model, on=on), logits(base, on=False))
    parts = [
        p
        for name, p in model.named_parameters()
        if name.endswith(".gate" if gate == "learned" else "cross.output.weight")
    ]
    assert len(parts) == 2 + (conditioned and gate == 1.0)
    with torch.no_grad():
        for parameter in parts:
            parameter.fill_(0.1)
    assert not torch.allclose(logits(model, on=True), logits(base, on=False), atol=1e-3)


@pytest.mark.parametrize("gate", ["learned", 1.0])
def test_a_frozen_base_stays_as_it_is_and_off_with_it(
    tmp_path: Path, retriever: FakeRetriever, gate: str | float
) -> None:
    write_corpus(tmp_path)
    base = load(write_base(tmp_path))
    model = {**ADDED, "gate": gate}
    straight = run(tmp_path, "straight", model=model)
    trained = load(straight["model"])
    assert set(moved(tmp_path, "straight").values()) == {0.0}
    assert torch.equal(logits(trained, on=False), logits(base, on=False))
    assert not torch.equal(logits(trained, on=True), logits(base, on=False))
    new = retro_parts(trained)
    before, _ = starting_model(TrainConfig.parse(values(tmp_path, model=model)), byte_tokenizer())
    start = dict(before.named_parameters())
    assert not [name for name, value in trained.named_parameters() if name in new and torch.equal(value, start[name])]

    stored = FileSystemReader(straight["checkpoint"]).read_metadata().state_dict_metadata
    ending = ".exp_avg"
    moments = {name.removeprefix("optimiser.state.").removesuffix(ending) for name in stored if name.endswith(ending)}
    assert moments == new
    assert {name.removeprefix("model.") for name in stored if name.startswith("model.")} == new
    run(tmp_path, "halves", model=model, stop_at=2)
    assert run(tmp_path, "halves", model=model)["weights_hash"] == straight["weights_hash"]


def test_a_free_base_learns_at_its_own_rate(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    write_base(tmp_path)
    rate, steps = 1e-5, 4
    straight = run(tmp_path, "straight", rate)
    distances = moved(tmp_path, "straight")
    # A step of Adam moves a weight by about the rate: by at most twice the rate in its first few steps.
    assert all(0.0 < distance < 2 * rate * steps for distance in distances.values())
    assert max(distances.values()) > 0.2 * rate
    trained = dict(load(straight["model"]).named_parameters())
    assert max(float(value.detach().abs()) for name, value in trained.items() if name.endswith(".gate")) > 100 * rate
    run(tmp_path, "halves", rate, stop_at=2)
    assert run(tmp_path, "halves", rate)["weights_hash"] == straight["weights_hash"]


def test_groups_have_their_own_rate_and_decay(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    write_base(tmp_path)
    config = TrainConfig.parse(values(tmp_path, 1e-4))
    model, _ = starting_model(config, byte_tokenizer())
    new, names = retro_parts(model), {id(value): name for name, value in model.named_parameters()}
    (optimiser,) = make_optimisers(model, config.optimiser, rate_scale(config, model))
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            assert group["rate_scale"] == (1.0 if name in new else pytest.approx(0.01))
            assert group["weight_decay"] == (0.1 if parameter.dim() > 1 else 0.0)
    assert not names
    frozen, _ = starting_model(TrainConfig.parse(values(tmp_path)), byte_tokenizer())
    (optimiser,) = make_optimisers(frozen, config.optimiser)
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for name, p in frozen.named_parameters() if name in new}


def test_what_is_left_out_is_as_the_base_was_converted(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    encoder = {"hidden_size": 24, "num_heads": 2, "positions": "learned"}
    write_base(tmp_path, gate="learned", cross_attention_layers=[3], num_neighbors=3, encoder=encoder)
    converted = {**DECODER, "cross_attention_layers": [3], "num_neighbors": 3, "gate": "learned"}
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"encoder": encoder}),
        ({"cross_attention_layers": [1]}, {"cross_attention_layers": [1], "encoder": encoder}),
        ({"encoder": {"num_layers": 1}}, {"encoder": {"hidden_size": 256, "num_heads": 4, "num_layers": 1}}),
        ({"hidden_size": 16, "gate": 1.0}, {"gate": 1.0, "encoder": encoder}),
    ]
    for given, expected in cases:
        found = TrainConfig.parse(values(tmp_path, model=given))
        assert found.model == RetroConfig.parse({**converted, **expected})
        assert found.corpus.tokenizer == str(tmp_path / "base")
    assert "model.hidden_size: 16  # derived" in render_config(found, {})
    longer = TrainConfig.parse(values(tmp_path, model={"chunk_length": 16})).model
    assert (longer.chunk_length, longer.neighbor_length) == (16, 32)
    write_base(tmp_path, "plain", max_positions=128, num_layers=7)
    plain = values(tmp_path, model={})
    plain["init"] = {"from": str(tmp_path / "plain")}
    added = TrainConfig.parse(plain).model
    assert (added.cross_attention_layers, added.encoder.hidden_size, added.gate) == ((6,), 256, "learned")
    assert (added.chunk_length, added.max_positions, added.num_layers) == (M, 128, 7)


def test_nvidias_recipe_begins_with_a_gpt(tmp_path: Path) -> None:
    """As the file's comment says."""
    write_corpus(tmp_path)
    base = str(write_base(tmp_path, max_positions=4096, chunk_length=64, num_layers=9))
    given = ["model=null", f"init.from={base}", f"corpus.tokenizer={base}", "init.base_learning_rate=2.5e-5"]
    path = Path(__file__).parents[3] / "examples" / "train" / "800m.yaml"
    assert " ".join(f"--set {each}" for each in given).replace(base, "GPT") in path.read_text()
    config, _ = load_train_config(path, given)
    assert (config.model.hidden_size, config.model.cross_attention_layers, config.model.gate) == (16, (6, 9), "learned")
    model, _ = starting_model(config, byte_tokenizer())
    assert set(rate_scale(config, model).values()) == {1.0}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": {"hidden_size": 32}}, ConfigError, r"model\.hidden_size: 32 is given and .*base, 16; leave it out"),
        ({"model": {"size": "tiny"}}, ConfigError, r"model\.size: 'tiny' is given"),
        (
            {"model": {"cross_attention_layers": [4]}},
            ConfigError,
            "model: cross_attention_layers: 4 is beyond the last of 3",
        ),
        ({"model": {"encoder": {"num_heads": 3}}}, ConfigError, r"hidden_size: 256 is not a multiple of num_heads 3"),
        ({"model": {"layers": [2]}}, ConfigError, "unknown key 'layers' in RetroConfig"),
        (
            {"model": {"cross_attention_layers": []}, "retrieval": None},
            ConfigError,
            r"init\.base_learning_rate: the base is frozen",
        ),
        ({"batch": {"chunks": 9}}, ConfigError, r"batch\.chunks: 9 chunks are 72 tokens; the model has 64 positions"),
        ({"init": {"from": "nowhere/else"}}, NotFoundError, r"init\.from: no model 'nowhere/else'"),
        ({"init": {"form": "base"}}, ConfigError, "unknown key 'form' in InitialConfig; did you mean 'from'"),
        ({"init": {}}, ConfigError, r"init\.from: Field required"),
    ],
)
def test_settings_that_do_not_go_with_the_base(
    tmp_path: Path, changes: dict[str, Any], kind: type[OpenbookError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBOOK_WEIGHTS", "package")
    write_corpus(tmp_path)
    write_base(tmp_path)
    given = values(tmp_path)
    given["batch"] |= changes.pop("batch", {})
    with pytest.raises(kind, match=message):
        TrainConfig.parse({**given, **changes})


def test_a_base_that_reads_neighbours_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    message = r"init\.from: .*base reads neighbours already"
    write_base(tmp_path, gate_value=0.3, cross_attention_layers=[2], gate="learned")
    with pytest.raises(ConfigError, match=message):
        starting_model(TrainConfig.parse(values(tmp_path)), byte_tokenizer())
    write_base(tmp_path, cross_attention_layers=[2], gate=1.0)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.parse(values(tmp_path))


def test_a_base_of_another_tokenizer_or_none(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    base = write_base(tmp_path)
    other = byte_tokenizer()
    other._raw.add_special_tokens(["<|more|>"])
    other.save(tmp_path / "other")
    given = values(tmp_path)
    given["corpus"]["tokenizer"] = str(tmp_path / "other")
    with pytest.raises(MismatchError, match=r"vocab_size: corpus\.tokenizer has 258, .*base has 257"):
        starting_model(TrainConfig.parse(given), other)
    for file in base.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"init\.from: .*base brings no tokenizer") as caught:
        starting_model(TrainConfig.parse(given), other)
    assert caught.value.field == "init.from"


def test_another_base_is_not_resumed(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    first = write_base(tmp_path)
    run(tmp_path, "run", stop_at=1)
    first.rename(tmp_path / "elsewhere")
    moved_away = values(tmp_path, out=str(tmp_path / "run"), stop_at=2)
    moved_away["init"]["from"] = str(tmp_path / "elsewhere")
    assert app.train(TrainConfig.parse(moved_away))["steps"] == 2
    model = load(tmp_path / "elsewhere")
    with torch.no_grad():
        model.final_norm.weight[0] += 1.0
    save(model, tmp_path / "base", tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match=r"init\.from: now .* then "):
        run(tmp_path, "run", stop_at=3)


def records(folder: Path, out: str) -> Sequence[dict[str, Any]]:
    return [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]


def test_the_twin_trains_the_same_decoder_on_the_same_data(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)

    def trained(out: str, **changes: Any) -> dict[str, Any]:
        given = settings(tmp_path, out=str(tmp_path / out))
        retrieval = changes.pop("retrieval", given["retrieval"])
        model = {**given["model"], **changes.pop("model")}
        return app.train(TrainConfig.parse({**given, **changes, "model": model, "retrieval": retrieval}))

    retro = trained("retro", model={"gate": "learned"})
    asked = len(retriever.calls)
    twin = trained("twin", model={"cross_attention_layers": []}, retrieval=None)
    assert len(retriever.calls) == asked
    assert (twin["loss_on"], twin["loss_shuffled"], twin["snapshot"]) == (None, None, "")
    assert twin["tokens"] == retro["tokens"]
    one, other = records(tmp_path, "retro"), records(tmp_path, "twin")
    # Gates are 0 before the first step, so that its losses are of one decoder on one batch.
    assert one[0]["loss"] == pytest.approx(other[0]["loss"], rel=1e-6)
    assert one[3]["loss"] != pytest.approx(other[3]["loss"], rel=1e-6)
    assert other[-1]["loss_off"] == twin["loss_off"]
    model = load(twin["model"])
    assert not retro_parts(model)
    trained("halves", model={"cross_attention_layers": []}, retrieval=None, stop_at=2)
    again = trained("halves", model={"cross_attention_layers": []}, retrieval=None)
    assert again["weights_hash"] == twin["weights_hash"]
