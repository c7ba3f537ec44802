"""What the demo prints at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from openbook_cli.demo.load import Call
from openbook_cli.demo.questions import Question


def print_table(questions: Sequence[Question], rounds: dict[str, list[Call]]) -> None:
    """Each question with its three answers, the right ones, and the first passage of the answer after the swap."""
    table = Table(show_lines=True)
    for column in ("question", "before (2015)", "after (2026)", "rolled back (2015)", "right: 2015 / 2026", "passages"):
        table.add_column(column, overflow="fold")
    for place, question in enumerate(questions):
        answers = [_short(rounds[name][place].answer) for name in ("before", "after", "rollback")]
        passages = rounds["after"][place].titles
        table.add_row(
            question.text, *answers, f"{question.old_answer} / {question.new_answer}", passages[0] if passages else "-"
        )
    Console().print(table)


def print_figures(figures: dict[str, Any]) -> None:
    """The figures below the table, one a line."""
    print(f"requests sent                 {figures['requests']}")
    print(f"failed                        {figures['failed_requests']}")
    print(f"replies that mix snapshots    {figures['mixed_replies']}")
    print(
        f"swap: prepare / activate      {figures['swap']['prepare_seconds']} s / {figures['swap']['activate_seconds']} s"
    )
    print(f"rollback                      {figures['rollback_seconds']} s")
    for kind, parts in figures["latency"].items():
        for where, numbers in parts.items():
            p50, p99 = (_ms(numbers[key]) for key in ("p50_ms", "p99_ms"))
            print(f"{kind + ' ' + where.replace('_', ' '):<29} p50 {p50}  p99 {p99}  ({numbers['calls']} calls)")
    same = figures["weights_hash_before"] == figures["weights_hash_after"]
    print(f"weights hash before / after   {figures['weights_hash_before'][:16]} / {figures['weights_hash_after'][:16]}")
    print(f"weights                       {'unchanged' if same else 'CHANGED'}")
    print(f"cross_attention               {figures['cross_attention']}")
    if figures["cross_attention"] != "on":
        print("  the language model's cross attention is untrained: what answers is the passage in its context")
    for name in ("before", "after", "rollback"):
        part = figures[name]
        print(f"{name:<29} matches 2015 {part['matches_old']:.2f}  matches 2026 {part['matches_new']:.2f}")
    if "training" in figures:
        print(f"tiny RETRO trained live       {figures['training']}")


def _short(text: str) -> str:
    return " ".join(text.split())[:120] or "(nothing)"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
