"""`openbook serve embedder|retriever|generator`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from openbook_cli.encoder_options import ENCODER
from openbook_cli.option_group import takes
from openbook_cli.security_options import SERVES, SERVES_AND_DIALS
from openbook_core.weights import DEFAULT_EMBEDDER, DEFAULT_MODEL

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port; 0 takes a free one, which the first line of output names.")]
Reflection = Annotated[bool, typer.Option(help="Tell callers by gRPC's reflection which services there are.")]
RetrieverPort = Annotated[int | None, typer.Option(help="Port; by default 7000 for a router, a free one for a shard.")]


@app.command()
@takes(SERVES, "security")
@takes(ENCODER, "encoder")
def embedder(
    host: Host = "127.0.0.1",
    port: Port = 7001,
    model: Annotated[str, typer.Option(help="Folder or name of the encoder.")] = DEFAULT_EMBEDDER,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    backend: Annotated[
        str, typer.Option(help="auto, torch, onnx or openvino; auto takes what the folder holds.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="Of torch: auto, cpu or cuda.")] = "auto",
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile, and CUDA graphs; on a GPU only.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the encoder.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus over HTTP; off by default.")] = None,
    http_port: Annotated[int | None, typer.Option(help="OpenAI's /v1/embeddings; off by default, 0: free.")] = None,
    http_role: Annotated[
        str | None, typer.Option(help="query or passage: the role of HTTP requests that state none.")
    ] = None,
    cache: Annotated[str | None, typer.Option(help="Redis for vectors of texts seen before; off by default.")] = None,
    cache_ttl_s: Annotated[float, typer.Option(help="Seconds that a vector is kept there.")] = 86_400.0,
    reflection: Reflection = True,
    *,
    encoder: dict[str, Any],
    security: dict[str, Any],
) -> None:
    """Text to vectors, batched across callers."""
    from openbook_embedder.app import serve
    from openbook_embedder.config import EmbedderConfig

    settings: dict[str, Any] = {"host": host, "port": port, "model": model, "dtype": dtype, "threads": threads}
    settings |= {"backend": backend, "device": device, "compile": compile_}
    settings |= {"metrics_port": metrics_port, "http_port": http_port, "http_role": http_role}
    settings |= {"cache": cache, "cache_ttl_s": cache_ttl_s, "reflection": reflection}
    serve(EmbedderConfig.parse(settings | encoder | security, source="openbook serve embedder"))


@app.command()
@takes(SERVES_AND_DIALS, "security")
def retriever(
    role: Annotated[str, typer.Option(help="shard or router.")],
    registry: Annotated[str, typer.Option(help="Folder of the registry, or redis://HOST:PORT.")],
    host: Host = "127.0.0.1",
    port: RetrieverPort = None,
    database: Annotated[list[str] | None, typer.Option(help="Serve only these; repeatable.")] = None,
    member_index: Annotated[int, typer.Option(help="Shard role: which of the members this is.")] = 0,
    member_count: Annotated[int, typer.Option(help="Shard role: processes that share the shards.")] = 1,
    embedder: Annotated[str, typer.Option(help="Router role: address of the embedder.")] = "",
    state_dir: Annotated[
        Path | None, typer.Option(help="Folder for the highest epochs that were seen: a restart never goes back.")
    ] = None,
    memory_limit_mb: Annotated[
        float | None, typer.Option(help="Shard role: most MB of mapped files; more is not loaded.")
    ] = None,
    drain_s: Annotated[
        float, typer.Option(help="Shard role: seconds that a snapshot answers after it is not wanted any more.")
    ] = 60.0,
    device: Annotated[
        str, typer.Option(help="Shard role: cpu, or the GPU (cuda:N) that the index is copied to.")
    ] = "cpu",
    device_fallback: Annotated[
        bool, typer.Option(help="Shard role: the processor does what the GPU cannot, instead of an error.")
    ] = False,
    cache: Annotated[
        str | None, typer.Option(help="Router role: Redis for answers to queries seen before; off by default.")
    ] = None,
    cache_ttl_s: Annotated[float, typer.Option(help="Seconds that an answer is kept there.")] = 86_400.0,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus over HTTP; off by default.")] = None,
    reflection: Reflection = True,
    *,
    security: dict[str, Any],
) -> None:
    """Vectors to neighbours: a shard, or the router that clients call."""
    from openbook_retriever.app import serve
    from openbook_retriever.config import RetrieverConfig

    port = (7000 if role == "router" else 0) if port is None else port
    settings: dict[str, Any] = {"role": role, "registry": registry, "host": host, "port": port, "embedder": embedder}
    settings |= {"databases": tuple(database or ()), "member_index": member_index, "member_count": member_count}
    settings |= {"metrics_port": metrics_port, "state_dir": state_dir, "reflection": reflection}
    settings |= {"memory_limit_mb": memory_limit_mb, "drain_s": drain_s}
    settings |= {"device": device, "device_fallback": device_fallback, "cache": cache, "cache_ttl_s": cache_ttl_s}
    serve(RetrieverConfig.parse(settings | security, source="openbook serve retriever"))


@app.command()
@takes(SERVES_AND_DIALS, "security")
def generator(
    retriever: Annotated[str, typer.Option(help="Address of the router.")],
    database: Annotated[str, typer.Option(help="Database to answer from.")],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    model: Annotated[str, typer.Option(help="Folder or name of the language model.")] = DEFAULT_MODEL,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    adapter: Annotated[str | None, typer.Option(help="Folder of a LoRA adapter for the model.")] = None,
    *,
    security: dict[str, Any],
) -> None:
    """The REST API: answers from the book."""
    from openbook_generator.app import serve
    from openbook_generator.config import GeneratorConfig

    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "model": model,
        "retriever": retriever,
        "database": database,
    }
    settings |= {"dtype": dtype, "adapter": adapter}
    serve(GeneratorConfig.parse(settings | security, source="openbook serve generator"))
