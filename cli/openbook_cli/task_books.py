"""The databases of tasks: built once, then served by processes that end with the run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from openbook_cli.alone import alone_in
from openbook_cli.demo.processes import Processes, leave_on_signals
from openbook_cli.swap import swap_to
from openbook_core.clients import AdminClient
from openbook_database.files import write_bytes_atomically
from openbook_model.checkpoint import read_config
from openbook_model.resolve import resolve_folder
from openbook_trainer.eval.tasks.questions import read_documents
from openbook_trainer.eval.tasks.task import Task


@contextmanager
def task_books(
    tasks: Sequence[Task], data: Path, out: Path, books: Path, model: str, limit_documents: int | None
) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a router, and the database of each task that has one, built into `books` unless it is there.

    Chunks are cut as `model`, a folder or name as for `openbook_model.resolve`, reads them: by its tokenizer and length.
    Runs may share `books`, in which one builds at a time: raises ConflictError while another one does. Other errors as of
    the builds and processes.
    """
    leave_on_signals()
    corpora = {task.corpus: task for task in tasks if task.corpus is not None}
    chunks = ["--tokenizer", model, "--chunk-length", str(read_config(resolve_folder(model)).chunk_length)]
    with Processes(out / "logs") as processes:
        folders: dict[str, Path] = {}
        with alone_in(books, "build", "--books"):
            for corpus, task in corpora.items():
                name = corpus if limit_documents is None else f"{corpus}-first-{limit_documents}"
                folders[corpus] = books / name
                _build(processes, task, data, folders[corpus], corpus, chunks, limit_documents)
        registry = str(out / "registry")
        embedder = processes.start("embedder", ["serve", "embedder", "--port", "0"])
        processes.start("shard", ["serve", "retriever", "--role", "shard", "--registry", registry])
        arguments = ["serve", "retriever", "--role", "router", "--port", "0", "--registry", registry]
        router = processes.start("router", [*arguments, "--embedder", embedder])
        with AdminClient(router) as admin:
            for corpus, folder in folders.items():
                swap_to(admin, corpus, admin.register(corpus, str(folder.absolute())).snapshot)
        yield router, {task.name: task.corpus for task in tasks if task.corpus is not None}


def _build(
    processes: Processes, task: Task, data: Path, folder: Path, corpus: str, chunks: list[str], limit: int | None
) -> None:
    source = folder.with_suffix(".jsonl")
    rows = [json.dumps(asdict(each), ensure_ascii=False) for each in read_documents(task, data, limit)]
    content = "".join(f"{row}\n" for row in rows).encode()
    if not source.is_file() or source.read_bytes() != content:
        write_bytes_atomically(source, content)
    arguments = ["db", "build", str(source), "--out", str(folder), "--database", corpus, *chunks]
    for line in processes.run(f"db build {corpus}", arguments):
        print(line, file=sys.stderr)
