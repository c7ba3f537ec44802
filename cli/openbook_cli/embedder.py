"""`openbook embedder export|compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openbook_cli.encoder_options import Pooling
from openbook_core.errors import ConfigError
from openbook_core.weights import DEFAULT_EMBEDDER, DEFAULT_MODEL

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
Model = Annotated[str, typer.Argument(help="Folder or name of the encoder.")]
Texts = Annotated[
    Path,
    typer.Option(help="JSON Lines of documents like those to be searched; the effect is measured on their chunks."),
]
DEFAULT_TEXTS = Path("examples/factbook/2026-02-19.jsonl.zst")
# Chunks of 64 tokens that two encoders are compared on.
_CHUNKS = 1000


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder to write; `openbook serve embedder --model` serves it.")],
    format_: Annotated[str, typer.Option("--format", help="onnx or openvino.")],
    model: Model = DEFAULT_EMBEDDER,
    dtype: Annotated[str, typer.Option(help="float32, or int8 for onnx.")] = "float32",
    texts: Texts = DEFAULT_TEXTS,
    pooling: Pooling = None,
) -> None:
    """Write a model folder for ONNX Runtime or OpenVINO, and measure what that changes in a search."""
    _require("format", format_, ("onnx", "openvino"))
    _require("dtype", dtype, ("float32", "int8"))
    passages = _passages(texts)
    from openbook_embedder.config import EncoderOptions
    from openbook_embedder.export import export_encoder

    options = EncoderOptions.parse({"pooling": pooling}, source="openbook embedder export")
    record = export_encoder(model, out, backend=format_, dtype=dtype, texts=passages, options=options)  # type: ignore[arg-type]
    effect = record.effect
    print(
        f"exported to {out}: {effect.overlap:.2%} of the 10 nearest as in float32 ({effect.texts} chunks), lowest cosine "
        f"on the probe texts {effect.probe_cosine:.6f}"
    )
    if effect.loses:
        print(f"note: that is too little for a default; it is served with --backend {format_} only")
    if not effect.attaches:
        print("note: that cosine is too low for databases that were embedded otherwise; it serves those that it embeds")


def _require(field: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ConfigError(f"{field}: given {given!r}; known: {', '.join(known)}", field=field)


def _passages(path: Path) -> list[str]:
    """The first chunks of the documents in `path`, as a build embeds them."""
    if not path.exists():
        raise ConfigError(
            f"texts: there is no {path}; give documents like those to be searched: --texts FILE.jsonl", field="texts"
        )
    from openbook_core.tokenizer import Tokenizer
    from openbook_database.build.settings import DEFAULT_TEMPLATE
    from openbook_database.chunking import PassageTemplate, chunk_document
    from openbook_database.reader import DocumentReader, FieldNames, Source
    from openbook_database.text import CONTEXT, chunk_text

    tokenizer, template = Tokenizer.load(DEFAULT_MODEL), PassageTemplate(DEFAULT_TEMPLATE)
    found: dict[str, None] = {}
    reader = DocumentReader(Source(path=path), FieldNames(), skip_bad_lines=True, known=set())
    for document in reader.read(lambda document: document):
        chunks = chunk_document(document.text, tokenizer, 64)
        for first in range(0, len(chunks.tokens), 64):
            tokens, left = chunks.tokens[first : first + 64], chunks.tokens[max(0, first - CONTEXT) : first]
            text = chunk_text(tokenizer, left, tokens, last=first + 64 >= len(chunks.tokens))
            found[template.passage(text, document.title, chunks.headings[first // 64])] = None
        if len(found) >= _CHUNKS:
            break
    return list(found)[:_CHUNKS]


@app.command()
def compare(
    model: Model = DEFAULT_EMBEDDER,
    exported: Annotated[list[Path] | None, typer.Option(help="Folder of an export of MODEL; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="Of torch: auto, cpu or cuda.")] = "auto",
    texts: Texts = DEFAULT_TEXTS,
    pooling: Pooling = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
) -> None:
    """Time a model in torch, in float32 and bfloat16, against its exports, and measure what each changes in a search."""
    passages = _passages(texts)
    from openbook_cli.figures import write_figures
    from openbook_embedder.compare import compare_backends
    from openbook_embedder.config import EncoderOptions

    options = EncoderOptions.parse({"pooling": pooling}, source="openbook embedder compare")
    figures = compare_backends(model, exported or (), passages, device=device, options=options)  # type: ignore[arg-type]
    figures["texts"] = texts.name
    for name, rate in figures["chunks_per_s"].items():
        effect = figures["effect"][name]
        print(
            f"{name:16} {rate:8.1f} chunks/s  top 10 kept {effect['overlap']:.2%}  lowest probe cosine "
            f"{effect['probe_cosine']:.6f}"
        )
    write_figures(figures, json_file)
