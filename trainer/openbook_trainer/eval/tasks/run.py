"""Tasks to figures: closed-book, OFF (passages in the prompt) and ON (neighbours in the cross attention as well)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import astuple
from hashlib import sha256
from typing import Any

import torch

from openbook_core.clients import RetrieverClient
from openbook_core.errors import ArgumentError
from openbook_core.tokenizer import Tokenizer
from openbook_database.streams import file_digest
from openbook_model import RetroModel, cross_attention_state, weights_hash
from openbook_model.adapter import WEIGHTS_FILE, load_adapted
from openbook_model.checkpoint import read_prompt
from openbook_model.resolve import resolve_folder
from openbook_prompt.chat import ChatFormat, Encoded, fit, require_fit
from openbook_prompt.recipe import Message, build_messages, lead_in
from openbook_trainer.eval.editions import judge, score_verdicts
from openbook_trainer.eval.intervals import figure
from openbook_trainer.eval.predictions import Prediction, score
from openbook_trainer.eval.tasks.decoding import Decoder
from openbook_trainer.eval.tasks.passages import passage_rows
from openbook_trainer.eval.tasks.questions import find_task, read_documents, read_questions
from openbook_trainer.eval.tasks.records import Records, settle
from openbook_trainer.eval.tasks.settings import SIDES, TasksConfig
from openbook_trainer.eval.tasks.task import Question, Task
from openbook_trainer.finder import FindNeighbors, NeighborFinder

Progress = Callable[[str, int, int], None]
_QUERIES_PER_CALL = 32
_SETTLED = {"limit", "part", "k", "max_tokens", "max_context", "prompt", "closed_instruction", "dtype"}


def evaluate(config: TasksConfig, progress: Progress = lambda stage, done, total: None) -> dict[str, Any]:
    """The figures as they are written to JSON; a side that was not run is None, ON says why in `cross_attention`.

    What is in `config.out` already is not made again. Raises OpenbookError: an unknown task, a task or model without any
    of the chosen sides, a file of another form, a retriever that does not answer, settings that differ from those of the
    run in `config.out`.
    """
    tasks = [find_task(name, config.part) for name in config.tasks]
    for task in tasks:
        if task.documents is None and "closed-book" not in config.sides:
            raise ArgumentError(f"task {task.name} has the side closed-book only; --sides leaves it out", field="sides")
    folder = resolve_folder(config.model)
    model = load_adapted(folder, getattr(torch, config.dtype), config.adapter)
    source = config.adapter or folder
    config = config.model_copy(update={"prompt": config.prompt.over(read_prompt(source), str(source))})
    run = _Run(config, model, Tokenizer.load(folder), progress)
    if config.sides == ("on",) and run.state != "on":
        raise ArgumentError(
            f"side on of a model whose cross attention is {run.state}: its answers are those of off; ask off",
            field="sides",
        )
    return {
        "model": config.model,
        "adapter": run.adapter,
        "weights_hash": run.weights,
        "cross_attention": run.state,
        "k": config.k,
        "max_tokens": config.max_tokens,
        "part": config.part,
        "sides": list(config.sides),
        "prompt": config.prompt.model_dump(mode="json"),
        "closed_instruction": config.closed_instruction,
        "tasks": {task.name: run.task(task) for task in tasks},
    }


class _Run:
    """One model over tasks; everything that it makes is in `config.out`."""

    def __init__(self, config: TasksConfig, model: RetroModel, tokenizer: Tokenizer, progress: Progress) -> None:
        self._config, self._model, self._tokenizer, self._progress = config, model, tokenizer, progress
        self._format = ChatFormat(tokenizer)
        self._context = min(config.max_context, model.config.max_positions)
        self._room = self._context - config.max_tokens
        self.state, self.weights = cross_attention_state(model), weights_hash(model)
        self.adapter = None
        if config.adapter is not None:
            self.adapter = {"folder": str(config.adapter), "blake3": file_digest(config.adapter / WEIGHTS_FILE)[1]}

    def task(self, task: Task) -> dict[str, Any]:
        config = self._config
        database = config.databases.get(task.name)
        if task.documents is not None and database is None:
            raise ArgumentError(f"task {task.name}: give the database that it is asked from", field="database")
        held = None
        if task.documents is not None and config.limit_documents is not None:
            held = [each.id for each in read_documents(task, config.data, config.limit_documents)]
        questions = read_questions(task, config.data, config.limit, held)
        snapshot = self._snapshot(database) if task.documents is not None else None
        folder = config.out / "answers" / task.name
        settle(folder, self._settings(task, questions, snapshot))
        sides: dict[str, Any] = dict.fromkeys(SIDES)
        if "closed-book" in config.sides:
            sides["closed-book"] = self._side(task, "closed-book", questions, None, None)
        found = None
        if snapshot is not None and database is not None:
            found = self._passages(task, questions, database, snapshot)
            shown = {each: row["shown"] for each, row in found.items()}
            if "off" in config.sides:
                sides["off"] = self._side(task, "off", questions, shown, None)
            if "on" in config.sides and self.state == "on":
                with closing(self._finder(database, snapshot)) as find:
                    sides["on"] = self._side(task, "on", questions, shown, find)
        return {
            "questions": len(questions),
            "database": database if snapshot else None,
            "snapshot": snapshot,
            "limit_documents": config.limit_documents if snapshot else None,
            "ceiling": None if found is None else _ceiling([found[question.id] for question in questions]),
            "sides": sides,
        }

    def _settings(self, task: Task, questions: Sequence[Question], snapshot: str | None) -> dict[str, Any]:
        config = self._config
        asked = sha256(repr([astuple(each) for each in questions]).encode()).hexdigest()
        return {
            "task": task.name,
            "weights": self.weights,
            "adapter": self.adapter and self.adapter["blake3"],
            "snapshot": snapshot,
            "questions": len(questions),
            "questions_sha256": asked,
            **config.model_dump(mode="json", include=_SETTLED),
        }

    def _snapshot(self, database: str | None) -> str:
        assert self._config.retriever is not None
        assert database is not None
        with RetrieverClient(self._config.retriever) as client:
            return client.describe(database).live_snapshot

    def _finder(self, database: str, snapshot: str) -> NeighborFinder:
        assert self._config.retriever is not None
        return NeighborFinder(self._config.retriever, database, snapshot, self._model.config, self._tokenizer)

    def _passages(
        self, task: Task, questions: Sequence[Question], database: str, snapshot: str
    ) -> dict[str, dict[str, Any]]:
        config = self._config
        records = Records(config.out / "answers" / task.name / "passages.jsonl")
        left = [question for question in questions if question.id not in records.rows]
        assert config.retriever is not None
        with RetrieverClient(config.retriever) as client:
            for start in range(0, len(left), _QUERIES_PER_CALL):
                asked = left[start : start + _QUERIES_PER_CALL]
                records.append(passage_rows(client, database, snapshot, asked, config.k, config.prompt))
                self._progress(f"{task.name} passages", len(records.rows), len(questions))
        return records.rows

    def _side(
        self,
        task: Task,
        side: str,
        questions: Sequence[Question],
        shown: dict[str, list[str]] | None,
        find: FindNeighbors | None,
    ) -> dict[str, Any]:
        config = self._config
        records = Records(config.out / "answers" / task.name / f"{side}.jsonl")
        left = [question for question in questions if question.id not in records.rows]
        if left:
            decoder = Decoder(self._model, self._tokenizer, batch=config.batch, max_context=self._context, find=find)
            for start in range(0, len(left), config.batch):
                asked = left[start : start + config.batch]
                prompts = [
                    self._closed_prompt(question.text)
                    if shown is None
                    else self._prompt(question.text, shown[question.id])
                    for question in asked
                ]
                replies = decoder.answers(prompts, config.max_tokens)
                records.append(
                    [
                        {"id": question.id, "prediction": reply, "answers": question.answers}
                        for question, reply in zip(asked, replies, strict=True)
                    ]
                )
                self._progress(f"{task.name} {side}", len(records.rows), len(questions))
        rows = [Prediction.parse(records.rows[question.id], source=str(records.path)) for question in questions]
        verdicts = [
            judge(row.prediction, question.answers, question.other_answers)
            for row, question in zip(rows, questions, strict=True)
            if question.other_answers is not None
        ]
        return score(rows) | (score_verdicts(verdicts) if verdicts else {})

    def _prompt(self, question: str, shown: Sequence[str]) -> list[int]:
        settings = self._config.prompt

        def encode(texts: Sequence[str]) -> Encoded:
            lead = lead_in(question, settings) if texts else ""
            return self._format.encode_chat(build_messages(question, texts, settings), lead)

        return list(fit(self._tokenizer, shown, self._room, encode, "max_context").ids)

    def _closed_prompt(self, question: str) -> list[int]:
        instruction = self._config.closed_instruction
        if not instruction:
            return self._prompt(question, [])
        lead = lead_in(question, self._config.prompt)
        encoded = self._format.encode_chat([Message("user", f"{question}\n{instruction}")], lead)
        require_fit(encoded, self._room, "max_context")
        return encoded.ids


def _ceiling(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of questions whose answer could be read; as in `passage_rows`."""
    figures: dict[str, Any] = {}
    for name in ("in_passages", "in_shown", "evidence"):
        figures |= figure(name, [float(row[name]) for row in rows if row[name] is not None])
    return figures
