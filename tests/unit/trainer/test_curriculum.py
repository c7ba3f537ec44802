"""When a curriculum goes on, what it repeats, and that it can be resumed."""

from __future__ import annotations

from random import Random

import pytest

from openbook_core.errors import ConfigError
from openbook_trainer.curriculum import Curriculum, CurriculumConfig, LevelSchedule

LEVELS = [{"neighbors": 1, "tokens": 8}, {"neighbors": 1, "tokens": 16}, {"neighbors": 2, "tokens": 16}]


def curriculum(**changes: object) -> Curriculum:
    return Curriculum(CurriculumConfig.parse({"levels": LEVELS, **changes}))


def test_the_next_level_begins_once_the_running_loss_is_low_for_long_enough() -> None:
    found = curriculum(below=1.0, least=3, memory=0.5)
    advanced = [found.observe(0, loss) for loss in (4.0, 0.5, 0.5, 0.5)]
    assert advanced == [False, False, False, True]  # running: 4, 2.25, 1.375, 0.9375
    assert (found.level, found.batches, found.loss) == (1, 0, None)
    assert [found.observe(1, 0.1) for _ in range(3)] == [False, False, True]
    assert found.at_last
    assert not any(found.observe(2, 0.0) for _ in range(20))


def test_replayed_batches_do_not_count_and_time_is_up_after_at_most() -> None:
    found = curriculum(below=0.1, least=1, at_most=3)
    found.observe(0, 0.0)
    assert found.level == 1
    assert not any(found.observe(0, 0.0) for _ in range(10))
    assert [found.observe(1, 9.0) for _ in range(3)] == [False, False, True]


def test_a_share_of_the_batches_is_of_earlier_levels() -> None:
    found, rng = curriculum(replay=0.25), Random(0)
    assert {found.draw(rng) for _ in range(50)} == {0}
    found.level = 2
    drawn = [found.draw(rng) for _ in range(4000)]
    assert drawn.count(2) / len(drawn) == pytest.approx(0.75, abs=0.03)
    assert drawn.count(0) == pytest.approx(drawn.count(1), rel=0.2)


def test_a_resumed_curriculum_goes_on_as_the_other_would() -> None:
    straight, resumed = curriculum(below=1.0, least=2), curriculum(below=1.0, least=2)
    losses = Random(3)
    for _ in range(5):
        straight.observe(straight.level, losses.uniform(0.5, 1.5))
    resumed.restore(straight.record())
    for _ in range(20):
        loss = losses.uniform(0.5, 1.5)
        assert straight.observe(straight.level, loss) == resumed.observe(resumed.level, loss)
    assert straight.record() == resumed.record()


def test_levels_may_not_fall() -> None:
    with pytest.raises(ConfigError, match="levels"):
        CurriculumConfig.parse({"levels": LEVELS[::-1]})
    with pytest.raises(ConfigError, match="levels"):
        CurriculumConfig.parse({"levels": []})


def test_levels_by_the_step_alone() -> None:
    schedule = LevelSchedule.parse({"levels": LEVELS, "steps": 100, "replay": 0.25})
    first, second, third = schedule.levels
    found = [schedule.at(step, seed=1) for step in range(4300)]
    assert set(found[:100]) == {first}
    assert set(found[100:200]) == {first, second}
    late = found[300:]
    assert late.count(third) / len(late) == pytest.approx(0.75, abs=0.03)
    assert late.count(first) == pytest.approx(late.count(second), rel=0.2)
    assert found[200:260] == [schedule.at(step, seed=1) for step in range(200, 260)]
    assert found[300:] != [schedule.at(step, seed=2) for step in range(300, 4300)]
    with pytest.raises(ConfigError, match="levels"):
        LevelSchedule.parse({"levels": LEVELS[::-1], "steps": 1})
