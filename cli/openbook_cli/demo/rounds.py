"""The same questions before a live swap, after it and after the rollback, with other clients' requests all the while."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from openbook_cli.demo import column
from openbook_cli.demo.load import Call, Load, attempt, latency, search
from openbook_cli.demo.questions import Question, grade
from openbook_cli.security_options import dial_of
from openbook_cli.swap import swap_to, wait_for_routers
from openbook_core.clients import AdminClient, RetrieverClient

ROUNDS = ("before", "after", "rollback")
COMPLETIONS, SEARCHES = 100, 400
WINDOW_S = 10.0
LOAD = "a completion of each model (8 tokens) every 0.8 s and a SearchText every 0.2 s"

Ask = Callable[[httpx.Client, str, str, int], Call]
Rounds = dict[str, list[Call]]


class IsMixed(Protocol):
    """An outside checker."""

    def is_mixed(self, call: Call) -> bool: ...


@dataclass(frozen=True)
class Column:
    """One model with its book: a database whose `snapshots` are the old and the new edition, and who serves the model."""

    database: str
    snapshots: tuple[str, str]
    url: str
    ask: Ask
    max_tokens: int
    checker: IsMixed


def swap_under_load(
    admin: AdminClient, router: str, prompted: Column, reader: Column | None, questions: Sequence[Question]
) -> tuple[dict[str, Any], list[Rounds]]:
    """Figures, and each column's answers by round. The books move one after the other."""
    columns = [prompted, *([reader] if reader else [])]
    with (
        httpx.Client(timeout=300, **dial_of({}).http(prompted.url)) as client,
        RetrieverClient(router) as retriever,
    ):

        def background(one: Column) -> Callable[[int], Call]:
            return lambda number: one.ask(client, one.url, questions[number % len(questions)].text, 8)

        def background_search(number: int) -> Call:
            return search(retriever, prompted.database, questions[number % len(questions)].text, 4)

        def ask(name: str) -> list[list[Call]]:
            say(f"asking {len(questions)} questions ({name})")
            return [
                [
                    attempt("question", lambda text=each.text, one=one: one.ask(client, one.url, text, one.max_tokens))  # type: ignore[misc]
                    for each in questions
                ]
                for one in columns
            ]

        hashes = [_weights_hash(client, one.url) for one in columns]
        kinds = {
            "completion": (background(prompted), COMPLETIONS, 0.8),
            "search_text": (background_search, SEARCHES, 0.2),
        }
        if reader:
            kinds[column.KIND] = (background(reader), COMPLETIONS, 0.8)
        load = Load(kinds)
        load.start()
        asked = [ask("before")]
        quiet, moving = [_pass_time()], []
        start = time.monotonic()
        swaps = [swap_to(admin, one.database, one.snapshots[1]) for one in columns]
        for swap in swaps:
            say(
                f"{swap['database']} swapped live: loaded in {swap['prepare_seconds']} s, moved in {swap['activate_seconds']} s"
            )
        moving.append(_pass_time(start))
        asked.append(ask("after"))
        quiet.append(_pass_time())
        start = time.monotonic()
        rollbacks = [_roll_back(admin, one.database) for one in columns]
        say(f"rolled back in {rollbacks[0]} s")
        moving.append(_pass_time(start))
        asked.append(ask("after the rollback"))
        say("waiting for the background load to reach its size")
        load.finish()
        after = [_weights_hash(client, one.url) for one in columns]
    rounds = [dict(zip(ROUNDS, some, strict=True)) for some in zip(*asked, strict=True)]
    figures = [
        {
            "swap": swaps[place],
            "rollback_seconds": rollbacks[place],
            "weights_hash_before": hashes[place],
            "weights_hash_after": after[place],
        }
        for place in range(len(columns))
    ]
    calls = [*load.calls, *_all_calls(rounds)]
    errors = [f"{call.kind}: {call.error}" for call in calls if call.error]
    for error in errors[:5]:
        say(f"failed request: {error}")
    first = rounds[0]
    report = {
        "requests": len(calls),
        "requests_by_kind": {kind: sum(call.kind == kind for call in load.calls) for kind in load.kinds}
        | {"question": len(columns) * len(ROUNDS) * len(questions)},
        "least_requests": {kind: least for kind, (_, least, _) in load.kinds.items()},
        "failed_requests": len(errors),
        "errors": errors[:20],
        "mixed_replies": sum(_checker(call, prompted, reader).is_mixed(call) for call in calls if not call.error),
        **figures[0],
        "load": LOAD,
        "latency": latency(load.calls, {"during_swap_and_rollback": moving, "outside": quiet}),
        "cross_attention": next((call.cross_attention for call in first["before"] if not call.error), "unknown"),
        **{
            name: grade([call.answer for call in first[name]], questions, live="new" if name == "after" else "old")
            for name in ROUNDS
        },
        "answers": _answers(questions, first),
    }
    if reader:
        second = rounds[1]
        report["second_column"] = {
            "snapshots": list(reader.snapshots),
            **figures[1],
            **column.column_figures(questions, second),
            "answers": _answers(questions, second),
        }
    return report, rounds


def say(text: str) -> None:
    print(f"[demo] {text}", file=sys.stderr, flush=True)


def _checker(call: Call, prompted: Column, reader: Column | None) -> IsMixed:
    return reader.checker if reader and call.kind == column.KIND else prompted.checker


def _all_calls(rounds: Iterable[Rounds]) -> list[Call]:
    return [call for each in rounds for some in each.values() for call in some]


def _answers(questions: Sequence[Question], rounds: Rounds) -> list[dict[str, Any]]:
    return [
        {
            "id": question.id,
            "question": question.text,
            **{name: rounds[name][place].answer for name in rounds},
            "old_answer": question.old_answer,
            "new_answer": question.new_answer,
            "passages": {name: rounds[name][place].shown for name in rounds},
        }
        for place, question in enumerate(questions)
    ]


def _roll_back(admin: AdminClient, database: str) -> float:
    """Seconds until every router has moved."""
    start = time.monotonic()
    wait_for_routers(admin, database, admin.rollback(database).epoch)
    return round(time.monotonic() - start, 3)


def _pass_time(start: float | None = None) -> tuple[float, float]:
    """A window of WINDOW_S seconds, from `start` (by default now), with only the background load in it."""
    begin = time.monotonic() if start is None else start
    time.sleep(max(0.0, begin + WINDOW_S - time.monotonic()))
    return begin, time.monotonic()


def _weights_hash(client: httpx.Client, url: str) -> str:
    return str(client.get(f"{url}/v1/weights").raise_for_status().json()["sha256"])
