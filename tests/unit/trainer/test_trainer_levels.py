"""Pretraining with few and short neighbours first: what the network is handed at each step, and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_fakes import FakeRetriever, settings, write_corpus

from openbook_core.errors import ConfigError
from openbook_trainer import app, loop, neighbours
from openbook_trainer.config import TrainConfig
from openbook_trainer.neighbours import Neighbors


def config(folder: Path, out: str, levels: list[tuple[int, int]], **changes: Any) -> TrainConfig:
    schedule = {"levels": [{"neighbors": k, "tokens": r} for k, r in levels], "steps": 1, "replay": 0.0}
    values = settings(folder, out=str(folder / out), model={"num_neighbors": 2}, **changes)
    return TrainConfig.parse({**values, "neighbor_levels": schedule})


def test_each_step_has_the_neighbours_of_its_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRetriever()
    for module in (app, neighbours):
        monkeypatch.setattr(module, "RetrieverClient", lambda address: fake)
    write_corpus(tmp_path)
    whole = 2 * settings(tmp_path)["model"]["chunk_length"]
    real, seen = loop.summed_loss, []

    def spied(model: Any, batch: Any, found: Any, device: Any) -> Any:
        seen.append((*found.ids_BLKR.shape[2:], int(found.lengths_BLK.max())))
        return real(model, batch, found, device)

    monkeypatch.setattr(loop, "summed_loss", spied)
    levels = [(1, 3), (2, 3), (2, whole)]
    straight = app.train(config(tmp_path, "straight", levels))
    assert [shape[:2] for shape in seen] == [shape for shape in (*levels, levels[-1]) for _ in range(2)]
    assert all(longest == min(r, whole) for _, r, longest in seen[:4])
    app.train(config(tmp_path, "halves", levels, stop_at=2))
    resumed = app.train(config(tmp_path, "halves", levels))
    assert resumed["weights_hash"] == straight["weights_hash"]
    assert resumed["loss_on"] == straight["loss_on"]
    with pytest.raises(ConfigError, match="neighbor_levels"):
        app.train(config(tmp_path, "halves", [(1, 4), (2, whole)]))


def test_the_last_level_is_all_that_the_model_reads(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neighbor_levels\.levels: the last must be all"):
        config(tmp_path, "run", [(1, 3)])


def test_narrowed_keeps_the_best_and_cuts_lengths() -> None:
    ids_BLKR = np.arange(2 * 3 * 2 * 5).reshape(2, 3, 2, 5)
    found = Neighbors(ids_BLKR, np.array([[[5, 2], [0, 0], [3, 1]]] * 2), masked=True).narrowed(1, 3)
    assert np.array_equal(found.ids_BLKR, ids_BLKR[:, :, :1, :3])
    assert found.lengths_BLK.tolist() == [[[3], [0], [3]]] * 2
    assert found.masked
