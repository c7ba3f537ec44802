"""`openbook model convert|export|describe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from openbook_cli.figures import write_figures

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def verbs() -> None:
    """Convert a model from and to other formats, and say what one costs."""


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder, or .gguf file.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder of the model that is written.")],
    kind: Annotated[str, typer.Option("--from", help="hf, gguf, megatron-legacy or megatron-core.")],
    tokenizer: Annotated[str | None, typer.Option(help="Folder or name, where the source brings none.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the source's), float32, bfloat16 or float16.")] = "auto",
    chunk_length: Annotated[
        int | None, typer.Option(help="Tokens of a chunk, where the source does not say it; 64.")
    ] = None,
    cross_attention_layers: Annotated[
        str | None,
        typer.Option(help="Layers that get new cross attention: 6,9,12, or none; by NVIDIA's rule.", metavar="LAYERS"),
    ] = None,
    num_neighbors: Annotated[int | None, typer.Option(help="Neighbours of a chunk, new RETRO parts; 2.")] = None,
    encoder_width: Annotated[int | None, typer.Option(help="Width of a new encoder; 256.")] = None,
    encoder_layers: Annotated[int | None, typer.Option(help="Layers of a new encoder; 2.")] = None,
    encoder_heads: Annotated[int | None, typer.Option(help="Heads of a new encoder; 4.")] = None,
    conditioned: Annotated[bool, typer.Option("--conditioned", help="A new encoder reads the asking chunk.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of new parameters; 0.")] = None,
    allow_unexpected: Annotated[
        bool, typer.Option("--allow-unexpected", help="Leave out what has no place here, and list it.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the whole report.")] = None,
) -> None:
    """Write a model of another format as a folder of ours; a plain decoder gets RETRO parts that start at gate 0."""
    from openbook_model.checkpoint import read_config
    from openbook_model.convert import RetrofitOptions, convert_model

    given: dict[str, Any] = {"chunk_length": chunk_length, "num_neighbors": num_neighbors, "seed": seed}
    given |= {"encoder_width": encoder_width, "encoder_layers": encoder_layers, "encoder_heads": encoder_heads}
    given |= {"conditioned": conditioned or None}
    if cross_attention_layers is not None:
        given["cross_attention_layers"] = _layers(cross_attention_layers)
    given = {name: value for name, value in given.items() if value is not None}
    options = RetrofitOptions.parse(given, source="openbook model convert") if given else None
    report = convert_model(
        kind,  # type: ignore[arg-type]
        source,
        target,
        options,
        dtype=_dtype(dtype),
        tokenizer=tokenizer,
        allow_unexpected=allow_unexpected,
    )
    print(report.render())
    print(f"{target}: {_summary(read_config(target))}")
    write_figures({"source": str(source), "from": kind, "target": str(target), **report.record()}, json_file)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a model of ours.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="New folder.")],
    kind: Annotated[
        str,
        typer.Option("--to", help="hf: the decoder, as a class of transformers. hf-retro: all, for trust_remote_code."),
    ],
) -> None:
    """Write a model of ours for transformers."""
    from openbook_model.export import export_model

    print(f"{target}: {export_model(kind, source, target)}")  # type: ignore[arg-type]


@app.command()
def describe(
    config: Annotated[str, typer.Argument(help="Model folder, YAML file (also one of a training run), or a size.")],
    gpus: Annotated[int, typer.Option(help="GPUs that FSDP shards over.")] = 1,
    tokens: Annotated[int | None, typer.Option(help="Tokens of a sequence; the model's, at most 4,096.")] = None,
    sequences: Annotated[int, typer.Option(help="Sequences of a micro-batch on each GPU.")] = 1,
    gpu_tflops: Annotated[float, typer.Option(help="Dense bfloat16 peak of a GPU; 989 is an H100's.")] = 989.0,
    mfu: Annotated[float, typer.Option(help="Share of it that training reaches.")] = 0.4,
    frozen_base: Annotated[bool, typer.Option("--frozen-base", help="Only the RETRO parts are trained.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Parameters, FLOPs, memory, sizes on disk and expected speed, without making the model."""
    from openbook_model import describe as description

    figures = description.describe(
        description.find_config(config),
        gpus=gpus,
        tokens=tokens,
        sequences=sequences,
        gpu_tflops=gpu_tflops,
        mfu=mfu,
        frozen_base=frozen_base,
    )
    print(description.render(figures))
    write_figures(figures, json_file)


def _layers(text: str) -> tuple[int, ...]:
    from openbook_core.errors import ArgumentError

    if text == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(
            f"--cross-attention-layers is 'none' or numbers with commas, not {text!r}", field="cross_attention_layers"
        ) from None


def _dtype(name: str) -> Any:
    import torch

    from openbook_core.errors import ArgumentError

    known = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ArgumentError(f"--dtype {name!r} is not one of {', '.join(known)}", field="dtype")
    return known[name]


def _summary(config: Any) -> str:
    layers = ", ".join(map(str, config.cross_attention_layers))
    crossing = f"cross attention in layers {layers} of" if layers else "no cross attention in"
    return (
        f"{crossing} {config.num_layers}, width {config.hidden_size}, vocabulary {config.vocab_size}, "
        f"chunks of {config.chunk_length}, gate {config.gate}"
    )
