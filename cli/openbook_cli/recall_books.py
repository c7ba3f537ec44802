"""`openbook eval recall`: two books built and served, and the same questions asked of both."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from openbook_cli.alone import alone_in
from openbook_cli.demo.processes import Processes, leave_on_signals
from openbook_cli.swap import swap_to
from openbook_core.clients import AdminClient
from openbook_core.errors import NotFoundError

if TYPE_CHECKING:
    from openbook_trainer.recall.config import RecallConfig

DATABASE = "recall"
NAMES = ("first", "second")


def recall_books(config: RecallConfig, documents: int) -> dict[str, Any]:
    """Figures of the model that `config` trained, on two books of up to `documents` documents.

    OUT/books keeps the logs of the services, which end with this; snapshots and registry are made anew and removed.
    Raises NotFoundError where there is no model yet, otherwise as the builds, processes and clients do.
    """
    from openbook_core.tokenizer import Tokenizer
    from openbook_model import load
    from openbook_trainer.recall.live import ask_books
    from openbook_trainer.recall.sources import make_source

    folder, work = config.out / "model", config.out / "books"
    if not folder.is_dir():
        raise NotFoundError(f"{folder} is missing; train it first: openbook train --config ...", field="config")
    leave_on_signals()
    books = make_source(config.source, config.seed).books(Random(f"{config.seed} books"), documents)
    with (
        alone_in(work, "evaluation", "out"),
        TemporaryDirectory(dir=work) as made,
        Processes(work / "logs") as processes,
    ):
        snapshots = [
            _build(processes, Path(made) / name, rows, folder, config.model.chunk_length)
            for name, rows in zip(NAMES, books.documents, strict=True)
        ]
        registry = Path(made) / "registry"
        embedder = processes.start("embedder", ["serve", "embedder", "--port", "0"])
        processes.start("shard", ["serve", "retriever", "--role", "shard", "--registry", str(registry)])
        arguments = ["serve", "retriever", "--role", "router", "--port", "0", "--registry", str(registry)]
        router = processes.start("router", [*arguments, "--embedder", embedder])
        with AdminClient(router) as admin:
            ids = [admin.register(DATABASE, str(each.absolute())).snapshot for each in snapshots]

            def make_live(book: int) -> str:
                swap_to(admin, DATABASE, ids[book])
                return ids[book]

            figures = ask_books(
                load(folder),
                Tokenizer.load(folder),
                books.questions,
                router,
                DATABASE,
                make_live,
                config.evaluation.max_tokens,
            )
    return {"documents": [len(rows) for rows in books.documents], **figures}


def _build(processes: Processes, out: Path, rows: list[dict[str, str]], tokenizer: Path, chunk_length: int) -> Path:
    source = out.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    arguments = ["db", "build", str(source), "--out", str(out), "--database", DATABASE]
    arguments += ["--tokenizer", str(tokenizer), "--chunk-length", str(chunk_length)]
    for line in processes.run(f"db build {out.name}", arguments):
        print(line, file=sys.stderr)
    return out
