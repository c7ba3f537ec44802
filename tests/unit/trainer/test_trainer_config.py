"""Shipped configurations load; impossible ones are refused with the field at fault."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from trainer_fakes import settings

from openbook_core.config import load_config
from openbook_core.errors import ConfigError
from openbook_model.config import RetroConfig, read_size
from openbook_trainer.config import TrainConfig, load_train_config, task_of
from openbook_trainer.tasks import config_class

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "train").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_shipped_files_load(path: Path) -> None:
    if task_of(path) != "pretrain":
        assert load_config(config_class(path), path)[0].model_dump()["task"] == task_of(path)
        return
    config, origin = load_train_config(path, ["seed=7", "batch.neighbor_drop=0.2"])
    assert (config.seed, config.batch.neighbor_drop) == (7, 0.2)
    assert origin["seed"] == "--set"


@pytest.mark.parametrize("size", ["125m", "350m", "800m", "2b"])
def test_shipped_sizes_are_the_models_of_their_names(size: str) -> None:
    config, _ = load_train_config(EXAMPLES[0].parent / f"{size}.yaml")
    settings = read_size(size) | {"vocab_size": config.model.vocab_size}
    assert config.model == RetroConfig.parse(settings)
    assert config.batch.chunks * config.model.chunk_length == config.model.max_positions


def test_800m_is_nvidias_recipe() -> None:
    """Megatron-LM a6c24e1c40, tools/retro: 25 million samples of 4,096, 16,667 of them to warm up."""
    config, _ = load_train_config(EXAMPLES[0].parent / "800m.yaml")
    optimiser, batch = config.optimiser, config.batch
    assert (batch.sequences, batch.chunks * config.model.chunk_length) == (128, 4096)
    assert config.steps == 25_000_000 // 128 and optimiser.warmup_steps == 16_667 // 128
    assert (optimiser.learning_rate, optimiser.final_fraction, optimiser.schedule) == (2.5e-5, 0.1, "cosine")
    adam = (optimiser.kind, optimiser.beta1, optimiser.beta2, optimiser.weight_decay, optimiser.clip_norm)
    assert adam == ("adamw", 0.9, 0.95, 0.1, 1.0)


def test_the_twin_differs_in_nothing_but_retrieval() -> None:
    retro, twin = (load_train_config(EXAMPLES[0].parent / name)[0] for name in ("tiny.yaml", "tiny-twin.yaml"))
    apart = {"out": retro.out, "retrieval": retro.retrieval}
    same = {"cross_attention_layers": retro.model.cross_attention_layers, "encoder": retro.model.encoder}
    assert twin.model.cross_attention_layers == ()
    assert twin.model_copy(update={**apart, "model": twin.model.model_copy(update=same)}) == retro


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'sequence' in BatchConfig; did you mean 'sequences'"):
        TrainConfig.parse(settings(tmp_path, batch={"sequence": 3}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": {"micro": 3}}, "batch.micro: 3 does not divide"),
        ({"batch": {"chunks": 9}}, "72 tokens; the model has 64 positions"),
        ({"model": {"cross_attention_layers": []}}, "cross_attention_layers: none"),
        ({"retrieval": None}, "retrieval: layers (2,) read neighbours; say where they come from"),
        ({"model": {"gate": 0.0}}, "model.gate: 0 switches retrieval off"),
        ({"model": {"neighbor_length": 8}}, "neighbor_length"),
        ({"optimiser": {"warmup_steps": 4}}, "warmup_steps: 4 leave nothing"),
        ({"optimiser": {"learning_rate": float("inf")}}, "optimiser.learning_rate: Input should be a finite number"),
        ({"optimiser": {"clip_norm": float("nan")}}, "optimiser.clip_norm: Input should be greater than 0"),
        ({"retrieval": {"on_failure": "ignore"}}, "on_failure"),
        ({"steps": 0}, "steps"),
        ({"model": {"hidden_size": 18, "num_heads": 4}}, "hidden_size: 18 is not a multiple of num_heads 4"),
        ({"model": {"cross_attention_layers": [3]}}, "cross_attention_layers: 3 is beyond the last of 2"),
        ({"model": {"chunk_length": 65, "neighbor_length": 130}}, "chunk_length: 65 is longer than max_positions 64"),
    ],
)
def test_impossible_combinations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TrainConfig.parse(settings(tmp_path, **changes))
