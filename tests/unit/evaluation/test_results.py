"""The tables in the documentation say what the result files say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PAGES = ("docs/guides/instruction-tuning.md", "examples/adapters/factbook/README.md")
TASKS = {"factbook": "people", "factbook-fields": "other fields"}


def rows(figures: dict[str, Any]) -> Iterator[str]:
    for task, name in TASKS.items():
        for edition in ("2015-11-18", "2026-02-19"):
            bare, tuned = (figures[run]["tasks"][f"{task}@{edition}"] for run in ("bare", "tuned"))
            off, ceiling = tuned["sides"]["off"], tuned["ceiling"]
            low, high = off["right_interval"]
            yield (
                f"| {edition} | {name}, {tuned['questions']} | {bare['sides']['off']['right']:.3f} | "
                f"**{off['right']:.3f}** [{low:.2f}, {high:.2f}] | {off['stale']:.2f} | "
                f"{ceiling['in_passages']:.3f} | {ceiling['in_shown']:.3f} |"
            )


@pytest.mark.parametrize("page", PAGES)
def test_the_adapter_s_table_is_that_of_its_run(page: str) -> None:
    figures = json.loads((ROOT / "docs" / "results" / "factbook-lora.json").read_text(encoding="utf-8"))
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [row for row in rows(figures) if row not in text]
    assert not missing


def test_the_tasks_table_is_that_of_its_runs() -> None:
    figures = json.loads((ROOT / "docs" / "results" / "tasks.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "guides" / "tasks.md").read_text(encoding="utf-8")
    for name, task in figures["bare"]["tasks"].items():
        cells = [name, str(task["questions"])]
        for run in ("bare", "adapter"):
            for side in ("closed-book", "off"):
                found = figures[run]["tasks"][name]["sides"][side]
                cells.append(f"{found['exact_match']:.3f} / {found['f1']:.3f}" if found else "-")
        ceiling = figures["adapter"]["tasks"][name]["ceiling"]
        cells.append(f"{ceiling['in_passages']:.3f} / {ceiling['in_shown']:.3f}" if ceiling else "-")
        assert f"| {' | '.join(cells)} |" in text


def test_the_demo_s_figures_are_those_of_its_runs() -> None:
    bare, tuned = (
        json.loads((ROOT / "docs" / "results" / name).read_text(encoding="utf-8"))["figures"]
        for name in ("demo-60.json", "demo-60-adapter.json")
    )
    text = " ".join((ROOT / "docs" / "guides" / "demo.md").read_text(encoding="utf-8").split())
    rounds = ("before", "after", "rollback")
    said = [
        f"| answers that match the {edition} edition | {' | '.join(f'{bare[each][match]:.2f}' for each in rounds)} |"
        for edition, match in (("2015", "matches_old"), ("2026", "matches_new"))
    ]
    changed = sum(each["before"] != each["rollback"] for each in bare["answers"])
    said += [
        f"{bare['requests']:,} requests, {bare['failed_requests']} failed, {bare['mixed_replies']} mixed",
        f"took {bare['swap']['prepare_seconds']:.1f} s, moving to it {bare['swap']['activate_seconds']:.2f} s, "
        f"the rollback {bare['rollback_seconds']:.2f} s",
        f"Of {bare['before']['questions']} answers {changed} differ between the first round and the rollback",
        f"give {tuned['before']['matches_old']:.2f}, {tuned['after']['matches_new']:.2f} and "
        f"{tuned['rollback']['matches_old']:.2f}, and {tuned['before']['matches_new']:.2f} stale, over "
        f"{tuned['requests']:,} requests",
    ]
    assert [each for each in said if each not in text] == []
    stale = {tuned["before"]["matches_new"], tuned["after"]["matches_old"], tuned["rollback"]["matches_new"]}
    assert stale == {0.0} and tuned["failed_requests"] == tuned["mixed_replies"] == 0
    assert bare["weights_hash_before"] == bare["weights_hash_after"]


def test_what_is_said_of_the_made_up_worlds_is_what_their_run_found() -> None:
    """Old answers, no retrieval and shuffled neighbours are where they should be; matching is not yet, and is said to be."""
    figures = json.loads((ROOT / "docs" / "results" / "synthetic-worlds.json").read_text(encoding="utf-8"))
    given, live = figures["training"]["held_out"], figures["live"]
    matching = {f"{book['matching']:.3f}" for book in live["books"]}
    said = (
        f"{figures['training']['steps']:,} steps, {figures['training']['train_cpu_seconds'] / 60:.0f} CPU minutes",
        f"With the right passage among two {given['matching']:.3f}, with it alone {given['one']:.3f}",
        f"in {given['distractor']:.3f} of the questions",
        f"Through the live retriever {' and '.join(sorted(matching))} on either book",
    )
    text = " ".join((ROOT / "docs" / "log.md").read_text(encoding="utf-8").split())
    assert [each for each in said if each not in text] == []
    assert live["weights_hash_before"] == live["weights_hash_after"]
    assert all(book["old"] <= 0.01 for book in live["books"])
    assert live["none"] <= 0.02 and live["shuffled"] <= 0.02
