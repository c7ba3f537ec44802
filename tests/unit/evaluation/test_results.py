"""The tables in the documentation say what the result files say."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from openbook_database.streams import file_digest
from openbook_trainer.eval.editions import judge
from openbook_trainer.eval.metrics import exact_match, f1
from openbook_trainer.eval.tasks.questions import find_task, read_questions
from openbook_trainer.rows import read_rows

ROOT = Path(__file__).parents[3]
ADAPTER = ROOT / "examples" / "adapters" / "factbook"
PAGES = ("docs/guides/instruction-tuning.md", "examples/adapters/factbook/README.md")
TASKS = {"factbook": "people", "factbook-fields": "other fields"}
EDITIONS = ("2015-11-18", "2026-02-19")
RUNS = ("bare", "tuned")


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs/results/factbook-lora.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def answers(figures: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The single answers, by run and NAME@EDITION."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for _, row in read_rows(ROOT / "docs" / "results" / figures["rows"]):
        found[row["run"], f"{row['task']}@{row['edition']}"].append(row)
    return found


def share(values: Iterator[float]) -> Any:
    """Their mean, to be compared with."""
    each = list(values)
    return pytest.approx(sum(each) / len(each), abs=1e-12)


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
def test_the_adapter_s_table_is_that_of_its_run(page: str, figures: dict[str, Any]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [row for row in rows(figures) if row not in text]
    assert not missing


def test_the_card_s_fields_are_those_of_the_run(figures: dict[str, Any]) -> None:
    text = (ADAPTER / "README.md").read_text(encoding="utf-8")
    first, second = (figures["fields"][edition] for edition in EDITIONS)
    for name in first:
        cells = [f"{each[name][key]:.3f}" for each in (first, second) for key in ("bare", "tuned", "readable")]
        assert f"| {name} | {first[name]['questions']} | {' | '.join(cells)} |" in text
    assert [first[name]["questions"] for name in first] == [second[name]["questions"] for name in second]


def test_the_adapter_s_figures_follow_from_its_answers(
    figures: dict[str, Any], answers: dict[tuple[str, str], list[dict[str, Any]]]
) -> None:
    assert answers.keys() == {(run, f"{task}@{edition}") for run in RUNS for task in TASKS for edition in EDITIONS}
    for (run, task), found in answers.items():
        told = figures[run]["tasks"][task]
        off, ceiling = told["sides"]["off"], told["ceiling"]
        verdicts = [judge(row["prediction"], row["answers"], row["other_answers"]) for row in found]
        assert [(each.right, each.stale) for each in verdicts] == [(row["right"], row["stale"]) for row in found]
        assert len({row["id"] for row in found}) == len(found) == told["questions"] == off["count"]
        assert off["right"] == share(float(each.right) for each in verdicts)
        assert off["stale"] == share(float(each.stale) for each in verdicts)
        assert off["exact_match"] == share(exact_match(row["prediction"], row["answers"]) for row in found)
        assert off["f1"] == share(f1(row["prediction"], row["answers"]) for row in found)
        assert ceiling["in_shown"] == share(float(row["readable"]) for row in found)
        assert ceiling["in_passages"] == share(float(row["in_passages"]) for row in found)


def test_the_figures_of_each_field_follow_from_the_answers(
    figures: dict[str, Any], answers: dict[tuple[str, str], list[dict[str, Any]]]
) -> None:
    for edition in EDITIONS:
        told = figures["fields"][edition]
        for name in told:
            for run in RUNS:
                found = answers[run, f"factbook-fields@{edition}"]
                asked = [row for row in found if name in ("all", row["field"])]
                assert told[name]["questions"] == len(asked)
                assert told[name][run] == share(float(row["right"]) for row in asked)


def test_what_became_right_and_wrong_is_said(answers: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    pairs = [
        (bare["right"], tuned["right"])
        for edition in EDITIONS
        for bare, tuned in zip(*(answers[run, f"factbook-fields@{edition}"] for run in RUNS), strict=True)
    ]
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    said = (
        f"Of {len(pairs)} answers about other fields {gained} that were wrong became right and {lost} that were right"
    )
    assert said in (ROOT / "docs" / "guides" / "instruction-tuning.md").read_text(encoding="utf-8")


def test_where_an_answer_was_shown_follows_from_the_answers(
    figures: dict[str, Any], answers: dict[tuple[str, str], list[dict[str, Any]]]
) -> None:
    for edition in EDITIONS:
        asked = [row for task in TASKS for row in answers["tuned", f"{task}@{edition}"]]
        best = [row for row in asked if row["in_best"]]
        other = [row for row in asked if row["readable"] and not row["in_best"]]
        told = figures["places"][edition]
        assert all(row["readable"] for row in best)
        assert [told[place]["questions"] for place in ("best line", "another line")] == [len(best), len(other)]
        assert sum(each["questions"] for each in told.values()) == len(asked)
        assert told["best line"]["right"] == share(float(row["right"]) for row in best)
        assert told["another line"]["right"] == share(float(row["right"]) for row in other)


def test_the_people_asked_about_are_all_of_the_part_that_tuning_leaves_out(
    answers: dict[tuple[str, str], list[dict[str, Any]]],
) -> None:
    for (_, task), found in answers.items():
        if task.startswith("factbook@"):
            asked = read_questions(find_task(task, "test"), ROOT / "examples", None)
            assert {row["id"]: (row["answers"], row["other_answers"]) for row in found} == {
                each.id: (list(each.answers), list(each.other_answers or ())) for each in asked
            }


def test_the_adapter_reaches_its_goals(figures: dict[str, Any]) -> None:
    for edition in EDITIONS:
        people = figures["tuned"]["tasks"][f"factbook@{edition}"]["sides"]["off"]
        assert people["right"] >= 0.85
        fields = figures["fields"][edition]["all"]
        assert fields["tuned"] >= fields["bare"]
        assert max(people["stale"], fields["stale"]) <= 0.01
    assert figures["training"]["cpu_seconds"] <= 3600
    assert not figures["training"]["resumed"], "seconds of a resumed run are not all"


def test_the_adapter_that_ships_is_the_one_that_was_asked(figures: dict[str, Any]) -> None:
    file = ADAPTER / "adapter_model.safetensors"
    size, digest = file_digest(file)
    assert (size, digest) == (figures["adapter"]["bytes"], figures["adapter"]["blake3"])
    assert digest == figures["tuned"]["adapter"]["blake3"]
    assert figures["bare"]["adapter"] is None
    assert size < 10e6
    with safe_open(file, "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert all(name.startswith("base_model.model.blocks.") for name in names)


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


def test_the_retrofit_s_table_is_that_of_its_run() -> None:
    """Off is the base to the bit, so its column is the bare model's."""
    figures = json.loads((ROOT / "docs" / "results" / "tasks.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "guides" / "tasks.md").read_text(encoding="utf-8")
    for name, task in figures["retrofit"]["tasks"].items():
        sides = task["sides"]
        cells = [f"{found['exact_match']:.3f} / {found['f1']:.3f}" for side in ("off", "on") if (found := sides[side])]
        if cells:
            assert f"| {name} | {task['questions']} | {' | '.join(cells)} |" in text
        for side in ("closed-book", "off"):
            bare = figures["bare"]["tasks"][name]["sides"][side]
            assert (sides[side] and sides[side]["f1"]) == (bare and bare["f1"])
    assert figures["retrofit"]["tasks"]["squad"]["sides"]["on"] is not None


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
    figures = json.loads((ROOT / "docs" / "results" / "synthetic-worlds.json").read_text(encoding="utf-8"))
    training, live = figures["training"], figures["live"]
    given, minutes = training["held_out"], training["train_cpu_seconds"] / 60
    log, guide = (
        " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split()) for page in ("log.md", "guides/recall.md")
    )

    def of_books(name: str) -> list[str]:
        return [f"{book[name]:.3f}" for book in live["books"]]

    in_log = (
        f"{training['steps']:,} steps, {minutes:.0f} CPU minutes",
        f"right passage among two {given['matching']:.3f}, with it alone {given['one']:.3f}",
        f"in {given['distractor']:.3f} of the questions",
        f"Through the live retriever {' and '.join(of_books('matching'))} on the two books",
    )
    in_guide = (
        f"After {minutes:.0f} CPU minutes",
        *(f"| `{name}` | {' | '.join(of_books(name))} |" for name in ("matching", "old", "retrieved")),
        f"Without retrieval {live['none']:.3f}, shuffled {live['shuffled']:.3f}; {live['questions']} questions",
    )
    assert [each for each in in_log if each not in log] == []
    assert [each for each in in_guide if each not in guide] == []
    assert live["weights_hash_before"] == live["weights_hash_after"]
    assert minutes <= 15 and all(book["matching"] >= 0.95 and book["old"] <= 0.01 for book in live["books"])
    assert live["none"] <= 0.02 and live["shuffled"] <= 0.02


def test_perplexity_is_that_of_transformers() -> None:
    """The guide's sentence is what the committed run found, on 8,192 tokens or more."""
    found = json.loads((ROOT / "docs/results/perplexity-wikitext2.json").read_text())
    theirs = math.exp(found["raw"]["transformers"]["nats_per_token"])
    assert found["transformers_perplexity"] == pytest.approx(theirs)
    assert found["perplexity"] == found["raw"]["ours"]["off"]["perplexity"] == pytest.approx(theirs, rel=1e-3)
    assert found["relative_difference"] == pytest.approx(abs(found["perplexity"] / theirs - 1), abs=1e-12)
    assert found["tokens_scored"] >= 8192 and found["same_tokens"]
    guide = " ".join((ROOT / "docs/guides/perplexity.md").read_text().split())
    assert f"{found['tokens_scored']:,} predicted tokens" in guide
    assert f"perplexity of {found['perplexity']:.4f} here and {theirs:.4f} by transformers" in guide
    assert f"differ by {found['relative_difference']:.0e}".replace("e-0", "e-") in guide


def test_the_factbook_s_model_reaches_its_goals_and_its_card_says_so() -> None:
    """Through cross attention alone: people of countries that it was not trained on, from two given passages and live."""
    folder = ROOT / "examples" / "factbook"
    found = json.loads((ROOT / "docs/results/factbook-cross-attention.json").read_text(encoding="utf-8"))
    assert sum(file.stat().st_size for file in (folder / "model").iterdir()) <= 10e6
    assert found["weights_hash_before"] == found["weights_hash_after"]
    assert found["training"]["train_cpu_seconds"] <= 3600
    card, log = ((ROOT / page).read_text(encoding="utf-8") for page in ("examples/factbook/README.md", "docs/log.md"))
    for edition in EDITIONS:
        given, live = found["given"][edition], found["live_editions"][edition]
        assert given["k2"]["people"]["exact"] >= 0.75
        assert given["none"]["people"]["exact"] == given["shuffled"]["people"]["exact"] == 0
        assert all(group.get("stale", 0) <= 0.01 for group in live.values() if isinstance(group, dict))
        for name in ("people", "capital", "number", "code"):
            shares = (
                given["k1"][name]["exact"],
                given["k2"][name]["exact"],
                live[name]["exact"],
                live[name]["right_found"],
            )
            old = f" {live[name]['stale']:.3f} " if "stale" in live[name] else " "
            cells = [edition, f"{name}, {live[name]['questions']}", *(f"{share:.3f}" for share in shares)]
            row = f"| {' | '.join(cells)} |{old}|"
            assert row in card and row in log


def test_both_columns_of_the_demo_are_as_the_guide_says() -> None:
    path = ROOT / "docs" / "results" / "demo-two-columns.json"
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    second = figures["second_column"]
    text = " ".join((ROOT / "docs" / "guides" / "demo.md").read_text(encoding="utf-8").split())
    right = {"before": "matches_old", "after": "matches_new", "rollback": "matches_old"}
    shares = [
        [column[each][match] for each, match in right.items()] for column in (figures, second, second["held_out"])
    ]
    said = [f"{before:.2f}, {after:.2f} and {rollback:.2f}" for before, after, rollback in shares[:2]]
    assert said[0] == said[1] and f"{said[0]} right in either column, none stale" in text
    assert f"of the four about other countries {shares[2][0]:.2f}" in text and len(set(shares[2])) == 1
    assert second["held_out"]["before"]["questions"] == 4
    assert (
        f"{figures['requests']:,} requests, {figures['failed_requests']} failed, {figures['mixed_replies']} mixed"
        in text
    )
    assert all(
        column[each][wrong] == 0
        for column in (figures, second)
        for each, wrong in zip(right, ("matches_new", "matches_old", "matches_new"), strict=True)
    )
    assert second["weights_hash_before"] == second["weights_hash_after"]
    assert second["cross_attention"] == "on"
