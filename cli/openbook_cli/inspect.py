"""`openbook db inspect`."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from openbook_cli.encoder_options import ENCODER
from openbook_cli.option_group import takes
from openbook_cli.query_encoder import DEFAULT, DtypeOption, Embedder, load_encoder
from openbook_core.errors import ArgumentError
from openbook_core.sizes import readable

_WIDEST = 120


@takes(ENCODER, "given")
def inspect(
    snapshot: Annotated[Path, typer.Argument(help="Folder of the snapshot.")],
    chunk: Annotated[int | None, typer.Option(help="Id of a chunk to show with its document.")] = None,
    text: Annotated[str | None, typer.Option(help="Show the neighbours of this text.")] = None,
    neighbours_of: Annotated[int | None, typer.Option(help="Show the neighbours of the chunk of this id.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many neighbours.")] = 5,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw recall against latency, and chunk lengths.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    embedder: Embedder = DEFAULT,
    dtype: DtypeOption = "auto",
    *,
    given: dict[str, Any],
) -> None:
    """Look at a snapshot: counts, recipe, recall and sizes; a chunk; the neighbours of a text or of a chunk."""
    from openbook_database import inspect as looking
    from openbook_database.snapshot import Snapshot

    if sum(each is not None for each in (chunk, text, neighbours_of)) > 1:
        raise ArgumentError("chunk, text, neighbours_of: give one of them", field="text")
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    if text is None and neighbours_of is None:
        shown = looking.inspect(snapshot, chunk=chunk)
        lines = _overview(shown) if chunk is None else _chunk(shown["sample"], width)
    else:
        opened = Snapshot.open(snapshot, "sizes")
        if text is None:
            assert neighbours_of is not None
            found = looking.neighbours_of_chunk(opened, neighbours_of, k)
        else:
            found = looking.neighbours_of_text(opened, text, k, load_encoder(embedder, dtype, given, "inspect"))
        of = {"chunk": looking.describe_chunk(opened, neighbours_of)} if neighbours_of is not None else {"text": text}
        shown = {"database": opened.manifest.database, "snapshot": opened.id, "of": of, "neighbours": found}
        lines = _neighbours(shown, width)
    print(json.dumps(shown, indent=1, ensure_ascii=False) if as_json else "\n".join(lines))
    if plot is not None:
        from openbook_database.inspect_plot import plot as draw

        draw(Snapshot.open(snapshot, "sizes"), plot)


def _overview(shown: dict[str, Any]) -> Iterator[str]:
    contract, index = shown["contract"], shown["index"]
    embedder = contract["embedder"].get("architecture")
    name = embedder.get("model_type", "") if isinstance(embedder, dict) else embedder
    facts = {
        "database": shown["database"],
        "snapshot": shown["snapshot"],
        "documents": f"{shown['documents']:,}",
        "chunks": f"{shown['chunks']:,} of up to {contract['chunk_length']} tokens, {shown['tokens']:,} tokens",
        "vectors": f"{contract['dimension']} elements, {contract['metric'].replace('_', ' ')}, "
        f"encoder {name} in {shown['encoder_dtype']}",
        "passages": repr(contract["passage_template"]),
        "index": f"{index['factory']}, "
        + ("exact" if index["exact"] else f"trained on {index['trained_on']:,} vectors"),
        "search": ", ".join(f"{key} {value}" for key, value in index["search"].items()) or "no settings",
        "size": f"{readable(shown['bytes'])}, {shown['bytes'] / shown['chunks']:,.0f} bytes a chunk",
    }
    yield from (f"{key:10} {value}" for key, value in facts.items())
    yield from _recall(index)
    yield "\nfiles"
    for name, size in shown["bytes_by_file"].items():
        yield f"  {name:18} {readable(size):>10}  {size / shown['bytes']:6.1%}"
    yield "\nsources"
    for source in shown["sources"]:
        skipped = sum(source["skipped"].values())
        removed = [f"{number:,} {kind}" for kind, number in source["removed"].items()]
        yield (
            f"  {source['name']}: {source['documents']:,} documents, {source['chunks']:,} chunks, "
            f"{source['tokens']:,} tokens; licence {', '.join(source['licences']) or 'not stated'}"
            + (f"; {skipped:,} lines skipped" if skipped else "")
            + (f"; left out: {', '.join(removed)}" if removed else "")
        )
    yield "\nshards"
    for shard in shown["shards"]:
        yield (
            f"  {shard['shard']:>3}  {shard['rows']:>12,} chunks from {shard['first_row']:,}, {shard['documents']:,} documents "
            f"{shard['first_id']} to {shard['last_id']}"
        )


def _recall(index: dict[str, Any]) -> Iterator[str]:
    if index["exact"]:
        yield f"{'recall':10} 1 by definition"
        return
    recall, chosen = index["recall"], index["search"]
    yield (
        f"{'recall':10} {recall['chosen']:.4f} @{recall['k']}, {recall['target']:g} was wanted; on {recall['queries']} chunks of "
        "the book as queries" + (f", {recall['changed']} rows ago" if "changed" in recall else "")
    )
    (name,) = chosen
    yield f"\n  {name:>10} {'recall':>8} {'compared':>12}"
    for line in recall["measured"]:
        mark = "  <- the default" if line[name] == chosen[name] else ""
        yield f"  {line[name]:>10} {line['recall']:>8.4f} {line['distances']:>12,.0f}{mark}"


def _chunk(chunk: dict[str, Any], width: int) -> Iterator[str]:
    document = chunk["document"]
    yield f"chunk {chunk['id']}: {chunk['tokens']} tokens, number {document['chunk'] + 1} of {document['chunks']} of its document"
    for key in ("id", "title", "uri", "licence"):
        if document[key] is not None:
            yield f"{key:12} {document[key]}"
    for key, value in document["metadata"].items():
        yield f"{key:12} {json.dumps(value, ensure_ascii=False)}"
    for key, absent in (
        ("context", "the document begins here"),
        ("text", ""),
        ("continuation", "the document ends here"),
    ):
        yield f"\n{key}" + ("" if chunk[key] else f": {absent}")
        yield from _folded(chunk[key], width, "  ")


def _neighbours(shown: dict[str, Any], width: int) -> Iterator[str]:
    of = shown["of"]
    yield f"{shown['database']}, snapshot {shown['snapshot'][:12]}; nearest to"
    yield from _folded(of.get("text") or of["chunk"]["text"], width, "  ")
    for neighbour in shown["neighbours"]:
        document = neighbour["document"]
        title = "" if document["title"] is None else f"{document['title']} "
        yield (
            f"\n{neighbour['score']:.4f}  chunk {neighbour['id']}  {title}({document['id']}, {document['chunk'] + 1} of "
            f"{document['chunks']})"
        )
        yield from _folded(neighbour["text"], width, "  ")


def _folded(text: str, width: int, indent: str) -> list[str]:
    """Lines of `text` folded to the terminal; blank lines are left out, characters that steer a terminal shown as such."""
    lines = (
        "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in line) for line in text.splitlines()
    )
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, max(width, 20), initial_indent=indent, subsequent_indent=indent)
    ]
