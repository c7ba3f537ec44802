"""What is found for each question, and whether an answer is in it (the retrieval ceiling)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openbook_core.clients import RetrieverClient
from openbook_core.words import normalise
from openbook_prompt.passage import Passage, find_passages
from openbook_prompt.recipe import choose_shown
from openbook_prompt.settings import PromptSettings
from openbook_trainer.answers import names
from openbook_trainer.eval.tasks.task import Question


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether an answer's words stand in `text` in a row, both after SQuAD's normalisation."""
    words = f" {normalise(text)} "
    return any(f" {normalise(answer)} " in words for answer in answers if normalise(answer))


def is_readable(question: Question, text: str) -> bool:
    """Whether an answer can be read in `text`: where there are editions as `judge` finds it in a reply, else by words."""
    if question.other_answers is not None:
        return names(text, question.answers)
    return contains_answer(text, question.answers)


def passage_rows(
    client: RetrieverClient,
    database: str,
    snapshot: str,
    questions: Sequence[Question],
    k: int,
    prompt: PromptSettings,
) -> list[dict[str, Any]]:
    """For each question its `shown` texts, best first, and in which an answer is.

    `in_passages`: in one of the k passages (each with its continuation); `in_shown`: in what of them is shown.
    `evidence`: its own document is among the passages' documents; None where the task names none.
    """
    _, found = find_passages(client, database, [question.text for question in questions], k, snapshot=snapshot)
    return [_row(question, passages, prompt) for question, passages in zip(questions, found, strict=True)]


def _row(question: Question, passages: Sequence[Passage], prompt: PromptSettings) -> dict[str, Any]:
    shown = [extract.text for extract in choose_shown(question.text, passages, prompt)]
    documents = {passage.document_id for passage in passages}
    return {
        "id": question.id,
        "shown": shown,
        "in_passages": any(is_readable(question, each.text + each.continuation) for each in passages),
        "in_shown": any(is_readable(question, text) for text in shown),
        "evidence": None if question.document is None else question.document in documents,
    }
