"""`openbook eval perplexity|tasks|recall`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_TASKS_HELP = "nq, nq-open, squad, factbook, factbook-fields, factbook-qa, factbook...@EDITION; commas between."

GATE_CLOSED = 3

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def verbs() -> None:
    """Measure a finished model."""


@app.command()
def perplexity(
    model: Annotated[str, typer.Option(help="Folder of ours, or a name or folder that is converted.")],
    data: Annotated[Path, typer.Option(help=".tokens (WikiText), .jsonl (documents) or .txt; plain, .gz or .zst.")],
    database: Annotated[str | None, typer.Option(help="Database for ON and shuffled.")] = None,
    retriever: Annotated[str | None, typer.Option(help="Address of the router that serves it.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    limit_tokens: Annotated[int | None, typer.Option(help="Only the first tokens.")] = None,
    block: Annotated[int | None, typer.Option(help="Longest window; the model's positions or 1024.")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens from window to window; half a block.")] = None,
    words: Annotated[bool, typer.Option("--words", help="Word perplexity for text that is not WikiText.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    picture: Annotated[Path | None, typer.Option("--plot", help="Where to draw them (.png or .svg).")] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help=f"Exit code {GATE_CLOSED} where the model does not use its neighbours.")
    ] = False,
) -> None:
    """Perplexity OFF, ON, with half of the database and with shuffled neighbours, by overlap, with standard errors."""
    from openbook_cli.figures import write_figures
    from openbook_cli.progress_line import ProgressLine
    from openbook_core.errors import ArgumentError
    from openbook_database.build.progress import Update
    from openbook_trainer.eval.perplexity import PerplexityConfig, evaluate
    from openbook_trainer.eval.perplexity_table import plot, table_lines

    if gate and database is None:
        raise ArgumentError("--gate needs --database and --retriever: it judges ON against OFF", field="gate")
    settings: dict[str, Any] = {"model": model, "data": data, "database": database, "retriever": retriever}
    settings |= {"limit_tokens": limit_tokens, "block": block, "stride": stride, "words": words, "device": device}
    config = PerplexityConfig.parse(settings, source="openbook eval perplexity")
    line = ProgressLine()
    figures = evaluate(config, lambda stage, done, total: line(Update(stage, done, total, 0.0)))
    print("\n" + "\n".join(table_lines(figures)))
    write_figures(figures, json_file)
    if picture is not None:
        plot(figures, picture)
    if gate and not figures["gate"]["passed"]:
        raise typer.Exit(GATE_CLOSED)


@app.command()
def tasks(
    model: Annotated[str, typer.Option(help="Folder of ours, or a name or folder that is converted.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; run again, it goes on.")],
    names: Annotated[str, typer.Option("--tasks", help=_TASKS_HELP)],
    adapter: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="LoRA folder that is merged into the model.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the tasks' files.", envvar="OPENBOOK_DATA")] = None,
    database: Annotated[str | None, typer.Option(help="A database that is served already, for every task.")] = None,
    retriever: Annotated[str | None, typer.Option(help="Address of the router that serves it.")] = None,
    books: Annotated[Path | None, typer.Option(help="Where databases are built or found; OUT/books.")] = None,
    limit: Annotated[int | None, typer.Option(help="A sample of so many questions a task.")] = None,
    limit_documents: Annotated[
        int | None, typer.Option(help="Only the first documents, and questions on them.")
    ] = None,
    part: Annotated[
        str, typer.Option(help="all, or of squad and the factbook what tuning may read (train) or may not (test).")
    ] = "all",
    sides: Annotated[
        str, typer.Option(help="Those of them that are asked; commas between. 'off' alone halves the work.")
    ] = "closed-book,off,on",
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 32,
    k: Annotated[int | None, typer.Option(help="Passages found for a question; as many as in serving.")] = None,
    closed_instruction: Annotated[
        str | None, typer.Option(help="After a closed-book question: 'Answer briefly.', or '' for the question alone.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Questions that are answered together.")] = 8,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    png: Annotated[Path | None, typer.Option(help="Where to draw them.")] = None,
) -> None:
    """Questions closed-book, OFF and ON: exact match, F1 and the retrieval ceiling."""
    from contextlib import ExitStack

    from openbook_cli.alone import alone_in
    from openbook_cli.figures import write_figures
    from openbook_cli.progress_line import ProgressLine
    from openbook_cli.task_books import task_books
    from openbook_core.errors import ArgumentError
    from openbook_database.build.progress import Update
    from openbook_trainer.eval.tasks.questions import find_task
    from openbook_trainer.eval.tasks.run import evaluate
    from openbook_trainer.eval.tasks.settings import TasksConfig
    from openbook_trainer.eval.tasks.table import plot, table_lines

    if data is None:
        raise ArgumentError("no --data: give the folder of the tasks' files, or set OPENBOOK_DATA", field="data")
    if (database is None) != (retriever is None):
        raise ArgumentError(
            "--database and --retriever go together; without them databases are built", field="database"
        )
    chosen = [find_task(name.strip(), part) for name in names.split(",")]
    settings: dict[str, Any] = {"model": model, "adapter": adapter, "data": data, "out": out}
    settings |= {"tasks": tuple(task.name for task in chosen), "limit": limit, "limit_documents": limit_documents}
    settings |= {"max_tokens": max_tokens, "batch": batch, "part": part}
    settings["sides"] = tuple(side.strip() for side in sides.split(","))
    optional = {"k": k, "closed_instruction": closed_instruction}
    settings |= {name: value for name, value in optional.items() if value is not None}
    config = TasksConfig.parse(settings, source="openbook eval tasks")
    line = ProgressLine()
    with ExitStack() as stack:
        stack.enter_context(alone_in(out, "run", "--out"))
        databases = {task.name: database for task in chosen if task.corpus is not None and database is not None}
        if database is None and any(task.corpus for task in chosen):
            served = task_books(chosen, data, out, books or out / "books", model, limit_documents)
            retriever, databases = stack.enter_context(served)
        config = config.model_copy(update={"retriever": retriever, "databases": databases})
        figures = evaluate(config, lambda stage, done, total: line(Update(stage, done, total, 0.0)))
    print("\n" + "\n".join(table_lines(figures)))
    write_figures(figures, json_file)
    if png is not None:
        plot(figures, png)


@app.command()
def recall(
    config: Annotated[Path, typer.Option(help="The YAML file of the finished training run (`task: recall`).")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="a.b=value, over the file; repeatable.")] = None,
    documents: Annotated[int, typer.Option(min=2, help="Documents of each book.")] = 250,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    png: Annotated[Path | None, typer.Option(help="Where to draw the run's curve and these figures.")] = None,
) -> None:
    """Swap the book under a model trained with `task: recall`: exact answers from each, through the live retriever."""
    from openbook_cli.figures import write_figures
    from openbook_cli.recall_books import recall_books
    from openbook_core.config import load_config
    from openbook_trainer.recall.config import RecallConfig
    from openbook_trainer.recall.report import figures_of, lines_of, plot

    chosen, _ = load_config(RecallConfig, config, set_ or ())
    figures = figures_of(chosen, recall_books(chosen, documents))
    print("\n".join(lines_of(figures)))
    write_figures(figures, json_file)
    if png is not None:
        plot(figures, png)
