"""`openbook db build`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openbook_cli.encoder_options import ENCODER
from openbook_cli.figures import write_figures
from openbook_cli.option_group import takes
from openbook_cli.progress_line import ProgressLine
from openbook_cli.security_options import DIALS, dial_of
from openbook_core.errors import ConfigError
from openbook_core.weights import DEFAULT_EMBEDDER, DEFAULT_MODEL

if TYPE_CHECKING:
    from openbook_database.build.engine import Engine
    from openbook_database.build.run import BuildResult
    from openbook_database.encoder import Encoder


@takes(DIALS, "security")
@takes(ENCODER, "given")
def build(
    name: Annotated[str, typer.Option("--name", "--database", help="Name of the database.")],
    out: Annotated[Path, typer.Option(help="Folder of the snapshot.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            help="File or folder: JSON Lines (.gz, .zst), text or Markdown, Parquet, a Hugging Face dataset on disk, a "
            "Megatron dataset (.idx); or a quoted glob. Repeatable.",
        ),
    ] = None,
    source_list: Annotated[
        Path | None, typer.Option("--sources", help="YAML or JSON file that lists sources, with weights and fields.")
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More input files.")] = None,
    tokenizer: Annotated[str, typer.Option(help="The language model whose tokenizer cuts the chunks.")] = DEFAULT_MODEL,
    embedder: Annotated[str, typer.Option(help="Folder or name of the encoder.")] = DEFAULT_EMBEDDER,
    dtype: Annotated[str, typer.Option(help="Compute type of the encoder: auto, float32 or bfloat16.")] = "auto",
    embedder_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a running embedder that encodes, instead of this process.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Earlier snapshot: only what is new or changed is encoded, the rest is shared.")
    ] = None,
    chunk_length: Annotated[int, typer.Option(help="Tokens of a chunk.")] = 64,
    shards: Annotated[int | None, typer.Option(help="Shards to make; the base's number, or 1, unless given.")] = None,
    index: Annotated[
        str | None,
        typer.Option(help="Faiss factory string, such as IVF1024,SQ8, or auto; the base's, or auto, unless given."),
    ] = None,
    target_recall: Annotated[float, typer.Option(help="Recall@10 that the default search shall reach.")] = 0.95,
    memory: Annotated[
        str | None,
        typer.Option(help="Of a machine: holds a shard's index, by which auto chooses, and what is trained on; 16GiB."),
    ] = None,
    train_sample: Annotated[
        int | None, typer.Option(help="Chunks to train the index on; by default 64 for each list, within --memory.")
    ] = None,
    keep_vectors: Annotated[
        bool | None, typer.Option(help="Keep the vectors as float16; as the base, or kept, unless given.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where it is encoded, and the index trained: auto, cpu or cuda.")
    ] = "auto",
    template: Annotated[
        str, typer.Option(help="What is embedded: {text} with {title}, {heading}.")
    ] = "{title}: {text}",
    text_field: Annotated[str, typer.Option(help="Field of a row that holds the text.")] = "text",
    id_field: Annotated[
        str, typer.Option(help="Field that holds the document's id; empty: NAME:NUMBER of file and row.")
    ] = "id",
    title_field: Annotated[
        list[str] | None, typer.Option(help="Field that holds the title, the first that a row has; repeatable.")
    ] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="Column to keep; repeatable.")] = None,
    dedup: Annotated[str, typer.Option(help="Duplicates to leave out: none, exact or near.")] = "none",
    near_threshold: Annotated[
        float, typer.Option(help="Jaccard index of token 5-grams from which documents are near-duplicates.")
    ] = 0.8,
    decontaminate: Annotated[
        list[Path] | None,
        typer.Option(help="Evaluation file (JSON Lines, JSON, text): documents that overlap are left out; repeatable."),
    ] = None,
    overlap_threshold: Annotated[
        float, typer.Option(help="Jaccard index of token 13-grams from which a document overlaps an evaluation text.")
    ] = 0.8,
    longest_run: Annotated[
        int, typer.Option(help="Run of tokens shared with an evaluation text that is an overlap; 0: none is.")
    ] = 50,
    skip_bad_lines: Annotated[bool, typer.Option(help="Count lines without a document instead of stopping.")] = False,
    limit_documents: Annotated[int | None, typer.Option(help="Only the first documents.")] = None,
    engine: Annotated[
        str, typer.Option(help="Where blocks are embedded and shards written: local, or ray for a cluster.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that write shards; by default what cores and memory allow.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="The cluster's address; its nodes share OUT's file system.")
    ] = None,
    ray_gpus: Annotated[float, typer.Option(help="GPUs of each process of the cluster that encodes.")] = 0.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the result as JSON.")] = None,
    *,
    given: dict[str, Any],
    security: dict[str, Any],
) -> None:
    """Build a snapshot, or go on with a build that was interrupted."""
    from openbook_core.tokenizer import Tokenizer
    from openbook_database.build.engine import LocalEngine
    from openbook_database.build.run import build_snapshot
    from openbook_database.build.settings import BuildSettings
    from openbook_database.index.recipe import DEFAULT_MEMORY
    from openbook_database.plan import parse_bytes
    from openbook_database.sources.listing import expand_sources, read_source_list, require_files

    fields: dict[str, Any] = {"text": text_field, "id": id_field, "metadata": tuple(metadata or ())}
    if title_field:
        fields["title"] = tuple(title_field)
    settings = BuildSettings.parse(
        {
            "chunk_length": chunk_length,
            "shards": shards or _recorded(base, "shards", 1),
            "index": index or _recorded(base, "index", "auto"),
            "target_recall": target_recall,
            "memory": DEFAULT_MEMORY if memory is None else int(parse_bytes(memory, "memory")),
            "train_sample": train_sample,
            "keep_vectors": _recorded(base, "keep_vectors", True) if keep_vectors is None else keep_vectors,
            "passage_template": template,
            "fields": fields,
            "skip_bad_lines": skip_bad_lines,
            "limit_documents": limit_documents,
            "cleaning": {
                "dedup": dedup,
                "near_threshold": near_threshold,
                "evaluation": tuple(decontaminate or ()),
                "overlap_threshold": overlap_threshold,
                "longest_run": longest_run or None,
            },
        },
        source="openbook db build",
    )
    if engine not in ("local", "ray"):
        raise ConfigError(f"engine: given {engine!r}; known: local, ray", field="engine")
    sources = expand_sources([*(inputs or ()), *(more or ()), *(read_source_list(source_list) if source_list else ())])
    require_files(sources)
    load = partial(load_encoder, embedder_address, embedder, dtype, device, given, (out, base), security)
    encoder = load()
    chosen: Engine
    if engine == "ray":
        from openbook_database.build.ray_engine import RayEngine

        # Timing the types again, a node might choose another one.
        again = (
            load
            if embedder_address
            else partial(load_encoder, None, embedder, encoder.dtype, device, given, (), security)
        )
        chosen = RayEngine(again, address=ray_address, gpus=ray_gpus)
    else:
        chosen = LocalEngine(workers)
    try:
        result = build_snapshot(
            sources,
            out,
            database=name,
            tokenizer=Tokenizer.load(tokenizer),
            encoder=encoder,
            settings=settings,
            base=base,
            device=device,
            progress=ProgressLine(),
            engine=chosen,
        )
    except KeyboardInterrupt:
        print("\ninterrupted: finished work is kept; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        chosen.close()
    _report(result, encoder.dtype, json_file)


def _report(result: BuildResult, dtype: str, json_file: Path | None) -> None:
    record = {field: value for field, value in vars(result).items() if field != "path"}
    write_figures({**record, "dtype": dtype, "out": str(result.path)}, json_file)
    if result.resumed:
        print("went on with a build that was interrupted", file=sys.stderr)
    for kind, number in result.skipped.items():
        print(f"skipped: {number} lines ({kind})", file=sys.stderr)
    for kind, number in result.removed.items():
        print(f"left out: {number} documents ({kind})", file=sys.stderr)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if result.shared:
        share = (
            f"{result.shared['chunks']} of {result.chunks} chunks, {result.shared['shards']} of {result.shards} shards"
        )
        print(f"taken from the base: {share}", file=sys.stderr)
    verb = "was there already" if result.reused else "built"
    print(
        f"snapshot {result.snapshot_id} {verb}: {result.documents} documents, {result.chunks} chunks, "
        f"embedded in {dtype}, {result.path}"
    )


def _recorded(base: Path | None, setting: str, default: Any) -> Any:
    """What the base was built with."""
    from openbook_database.manifest import Manifest

    return default if base is None else Manifest.read(base).recipe["settings"][setting]


def load_encoder(
    address: str | None,
    embedder: str,
    dtype: str,
    device: str,
    given: dict[str, Any],
    earlier: tuple[Path | None, ...],
    security: dict[str, Any],
) -> Encoder:
    """The service at `address`, or an encoder in this process, on `device`; it stays with the compute type of the builds
    `earlier`."""
    if address is None:
        from openbook_database.build.run import recorded_dtype
        from openbook_embedder.config import EncoderOptions
        from openbook_embedder.engine import EncoderEngine

        recorded = (recorded_dtype(path) for path in earlier if path is not None)
        chosen = next(filter(None, recorded), dtype) if dtype == "auto" else dtype
        options = EncoderOptions.parse(given, source="openbook db build")
        kinds: dict[str, Any] = {"dtype": chosen, "device": device}
        return EncoderEngine.load(embedder, **kinds, options=options)
    if embedder != DEFAULT_EMBEDDER or dtype != "auto" or given:
        raise ConfigError(
            f"embedder_address: the embedder at {address} chooses model, compute type and pooling; leave out the "
            "options of the encoder",
            field="embedder_address",
        )
    from openbook_core.clients import EmbedderClient
    from openbook_database.remote_encoder import RemoteEncoder

    return RemoteEncoder(EmbedderClient(address, dial_of(security)))
