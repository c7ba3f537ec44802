"""What the demo prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openbook_cli.demo.load import Call
from openbook_cli.demo.questions import Question

_BOOKS = {"before": "2015", "after": "2026", "rollback": "2015 again"}


def print_table(questions: Sequence[Question], rounds: Sequence[Mapping[str, Sequence[Call]]]) -> None:
    """Each question with its answers from each book, a column for each model, what they rest on, and the right answer."""
    table = Table()
    for name in ("question", "book", "passages in the prompt", *["cross_attention: on"] * (len(rounds) - 1), "right"):
        table.add_column(name, overflow="fold")
    for place, question in enumerate(questions):
        table.add_section()
        for name, book in _BOOKS.items():
            right = question.new_answer if name == "after" else question.old_answer
            cells = [_cell(some[name][place]) for some in rounds]
            table.add_row(question.text if name == "before" else "", book, *cells, right)
    Console().print(table)
    print("[...]: what the answer rests on: titles and chunk ids in the snapshot of that answer")


def print_figures(figures: dict[str, Any]) -> None:
    """The figures below the table, one a line."""
    swap = figures["swap"]
    print(f"requests sent                 {figures['requests']}  {figures['requests_by_kind']}")
    print(f"failed                        {figures['failed_requests']}")
    print(f"replies that mix snapshots    {figures['mixed_replies']}")
    print(f"swap: load / move             {swap['prepare_seconds']} s / {swap['activate_seconds']} s")
    print(f"rollback                      {figures['rollback_seconds']} s")
    print(f"latency under {figures['load']}")
    for kind, parts in figures["latency"].items():
        for where, numbers in parts.items():
            shown = "  ".join(f"{key[:-3]} {_ms(numbers[key])}" for key in ("p50_ms", "p99_ms", "max_ms"))
            print(f"  {kind + ' ' + where.replace('_', ' '):<27} {shown}  ({numbers['calls']} calls)")
    same = figures["weights_hash_before"] == figures["weights_hash_after"]
    print(f"weights hash before / after   {figures['weights_hash_before'][:16]} / {figures['weights_hash_after'][:16]}")
    print(f"weights                       {'unchanged' if same else 'CHANGED'}")
    print(f"cross_attention               {figures['cross_attention']}")
    if figures["cross_attention"] != "on":
        print("  the language model's cross attention is untrained: what answers is the passage in its context")
    _print_grades(figures)
    if second := figures.get("second_column"):
        print("second column: a model of 1.9 million weights, with nothing of the book in its prompt")
        swap, same = second["swap"], second["weights_hash_before"] == second["weights_hash_after"]
        print(f"swap: load / move             {swap['prepare_seconds']} s / {swap['activate_seconds']} s")
        print(
            f"weights                       {'unchanged' if same else 'CHANGED'}, {second['weights_hash_after'][:16]}"
        )
        print(f"cross_attention               {second['cross_attention']}")
        _print_grades(second)
        held_out = second["held_out"]
        print(f"of countries it was not trained on, {held_out['before']['questions']} questions:")
        _print_grades(held_out)


def _print_grades(figures: Mapping[str, Any]) -> None:
    for name in _BOOKS:
        part = figures[name]
        print(f"{name:<29} matches 2015 {part['matches_old']:.2f}  matches 2026 {part['matches_new']:.2f}")


def print_training(summary: dict[str, Any]) -> None:
    """What a minute of training against the live retriever gave."""
    print(f"tiny RETRO, trained live      {summary['steps']} steps, {summary['tokens']} tokens")
    print(f"  held-out loss               without retrieval {summary['loss_off']:.4f}, with {summary['loss_on']:.4f}")
    shuffled = summary["loss_shuffled"]
    if shuffled is None:
        print("  with shuffled neighbours    not measured: there is one held-out sequence")
    else:
        print(f"  with shuffled neighbours    {shuffled:.4f}: what is not better than this is no use of the book")


def _cell(call: Call) -> str:
    if call.error:
        return escape(f"FAILED: {call.error[:80]}")
    return escape(f"{' '.join(call.answer.split())[:160] or '(nothing)'}\n[{', '.join(call.shown) or 'no passage'}]")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
