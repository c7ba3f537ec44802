"""`openbook db build|verify|id|inspect|register|swap|rollback|abort|list`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openbook_cli.encoder_options import MaxTokens, Normalize, PassagePrompt, Pooling, QueryPrompt
from openbook_cli.security_options import DIALS, dial_of, takes
from openbook_core.errors import ConfigError
from openbook_core.weights import DEFAULT_EMBEDDER, DEFAULT_MODEL

if TYPE_CHECKING:
    from openbook_core.clients import AdminClient
    from openbook_database.encoder import Encoder

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
Router = Annotated[str, typer.Option(help="Address of a router.")]


def _admin(router: str, security: dict[str, Any]) -> AdminClient:
    from openbook_core.clients import AdminClient

    return AdminClient(router, dial_of(security))


@app.command()
@takes(DIALS)
def build(
    inputs: Annotated[list[Path], typer.Argument(help="JSON Lines files, plain, .gz or .zst.")],
    out: Annotated[Path, typer.Option(help="Folder of the snapshot.")],
    database: Annotated[str, typer.Option(help="Name of the database.")],
    tokenizer: Annotated[str, typer.Option(help="The language model whose tokenizer cuts the chunks.")] = DEFAULT_MODEL,
    embedder: Annotated[str, typer.Option(help="Folder or name of the encoder.")] = DEFAULT_EMBEDDER,
    dtype: Annotated[str, typer.Option(help="Compute type of the encoder: auto, float32 or bfloat16.")] = "auto",
    pooling: Pooling = None,
    normalize: Normalize = None,
    query_prompt: QueryPrompt = None,
    passage_prompt: PassagePrompt = None,
    max_tokens: MaxTokens = None,
    embedder_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a running embedder that encodes, instead of this process.")
    ] = None,
    shards: Annotated[int, typer.Option(help="Shards to make.")] = 1,
    template: Annotated[
        str, typer.Option(help="What is embedded: {text} with {title}, {heading}.")
    ] = "{title}: {text}",
    text_field: Annotated[str, typer.Option(help="Field of a row that holds the text.")] = "text",
    id_field: Annotated[str, typer.Option(help="Field that holds the document's id.")] = "id",
    title_field: Annotated[
        list[str] | None, typer.Option(help="Field that holds the title, the first that a row has; repeatable.")
    ] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="Column to keep; repeatable.")] = None,
    skip_bad_lines: Annotated[bool, typer.Option(help="Count lines without a document instead of stopping.")] = False,
    limit_documents: Annotated[int | None, typer.Option(help="Only the first documents.")] = None,
    *,
    security: dict[str, Any],
) -> None:
    """Build a snapshot, or go on with a build that was interrupted."""
    from openbook_core.tokenizer import Tokenizer
    from openbook_database.build.run import build_snapshot
    from openbook_database.build.settings import BuildSettings

    fields: dict[str, Any] = {"text": text_field, "id": id_field, "metadata": tuple(metadata or ())}
    if title_field:
        fields["title"] = tuple(title_field)
    settings = BuildSettings.parse(
        {
            "shards": shards,
            "passage_template": template,
            "fields": fields,
            "skip_bad_lines": skip_bad_lines,
            "limit_documents": limit_documents,
        },
        source="openbook db build",
    )
    given = {"pooling": pooling, "normalize": normalize, "max_tokens": max_tokens}
    given |= {"query_prompt": query_prompt, "passage_prompt": passage_prompt}
    encoder = _encoder(embedder_address, embedder, dtype, given, out, security)
    try:
        result = build_snapshot(
            list(inputs),
            out,
            database=database,
            tokenizer=Tokenizer.load(tokenizer),
            encoder=encoder,
            settings=settings,
            progress=ProgressLine(),
        )
    except KeyboardInterrupt:
        print("\ninterrupted: finished work is kept; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    if result.resumed:
        print("went on with a build that was interrupted", file=sys.stderr)
    for kind, number in result.skipped.items():
        print(f"skipped: {number} lines ({kind})", file=sys.stderr)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    verb = "was there already" if result.reused else "built"
    print(
        f"snapshot {result.snapshot_id} {verb}: {result.documents} documents, {result.chunks} chunks, "
        f"embedded in {encoder.dtype}, {result.path}"
    )


def _encoder(
    address: str | None, embedder: str, dtype: str, given: dict[str, Any], out: Path, security: dict[str, Any]
) -> Encoder:
    """The service at `address`, or an encoder in this process that stays with the compute type of a build at `out`."""
    if address is None:
        from openbook_database.build.run import recorded_dtype
        from openbook_embedder.config import EncoderOptions
        from openbook_embedder.engine import EncoderEngine

        chosen = recorded_dtype(out) or dtype if dtype == "auto" else dtype
        options = EncoderOptions.parse(given, source="openbook db build")
        return EncoderEngine.load(embedder, dtype=chosen, options=options)  # type: ignore[arg-type]
    if embedder != DEFAULT_EMBEDDER or dtype != "auto" or any(value is not None for value in given.values()):
        raise ConfigError(
            f"embedder_address: the embedder at {address} chooses model, compute type and pooling; leave out the "
            "options of the encoder",
            field="embedder_address",
        )
    from openbook_core.clients import EmbedderClient
    from openbook_database.remote_encoder import RemoteEncoder

    return RemoteEncoder(EmbedderClient(address, dial_of(security)))


class ProgressLine:
    """Stage, share and rate on one line of a terminal; one line for every tenth elsewhere."""

    def __init__(self, label: str = "") -> None:
        self._label, self._last = label, ("", -1)

    def __call__(self, update: Any) -> None:
        share = update.done / update.total if update.total else 0.0
        step = (update.stage, int(share * 10))
        terminal = sys.stderr.isatty()
        if not terminal and step == self._last:
            return
        self._last = step
        text = f"{self._label}{update.stage}: {update.done}{f' of {update.total}' if update.total else ''}"
        print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)


@app.command()
def verify(
    snapshot: Path,
    expect: Annotated[str | None, typer.Option("--snapshot", help="The id that it must have.")] = None,
) -> None:
    """Check every byte, every row and the golden queries."""
    from openbook_database.verify import verify as check

    done = check(snapshot, expected_id=expect)
    print(
        f"snapshot {done.snapshot_id} is whole: {done.files} files, {done.chunks} chunks, {done.golden_queries} golden"
    )


@app.command("id")
def snapshot_id(snapshot: Path) -> None:
    """The snapshot's id: the digest of its manifest."""
    from openbook_database.manifest import Manifest

    print(Manifest.read(snapshot).snapshot_id)


@app.command()
def inspect(
    snapshot: Path,
    chunk: Annotated[int | None, typer.Option(help="Id of the chunk to show.")] = None,
) -> None:
    """Counts, recipe, sizes, contract and one chunk, as JSON."""
    from openbook_database.inspect import inspect as look

    print(json.dumps(look(snapshot, chunk=chunk), indent=1, ensure_ascii=False))


@app.command()
@takes(DIALS)
def register(database: str, snapshot: Path, router: Router, *, security: dict[str, Any]) -> None:
    """Make a snapshot known to the registry."""
    with _admin(router, security) as admin:
        print(admin.register(database, str(snapshot.absolute())).snapshot)


@app.command()
@takes(DIALS)
def swap(
    database: str,
    snapshot: str,
    router: Router,
    deadline: Annotated[float, typer.Option(help="Seconds for loading.")] = 300.0,
    *,
    security: dict[str, Any],
) -> None:
    """Load a snapshot beside the live one, make it live, and return when every router has moved."""
    from openbook_cli.swap import swap_to

    with _admin(router, security) as admin:
        print(json.dumps(swap_to(admin, database, snapshot, deadline_s=deadline)))


@app.command()
@takes(DIALS)
def rollback(database: str, router: Router, *, security: dict[str, Any]) -> None:
    """Make the previous snapshot live again, at once."""
    from openbook_cli.swap import state_record, wait_for_routers

    with _admin(router, security) as admin:
        start = time.perf_counter()
        state = wait_for_routers(admin, database, admin.rollback(database).epoch)
        print(json.dumps({**state_record(state), "seconds": round(time.perf_counter() - start, 3)}))


@app.command()
@takes(DIALS)
def abort(database: str, router: Router, *, security: dict[str, Any]) -> None:
    """Give up the swap that is being prepared; the live snapshot is untouched."""
    from openbook_cli.swap import state_record

    with _admin(router, security) as admin:
        print(json.dumps(state_record(admin.abort(database))))


@app.command("list")
@takes(DIALS)
def list_databases(router: Router, database: str = "", *, security: dict[str, Any]) -> None:
    """Databases, snapshots, replicas and routers, as JSON."""
    from openbook_cli.swap import state_record

    with _admin(router, security) as admin:
        print(json.dumps([state_record(state) for state in admin.list(database)], indent=1))
