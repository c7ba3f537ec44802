"""`openbook ask`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from openbook_cli.option_group import takes
from openbook_cli.security_options import DIALS, dial_of


@takes(DIALS, "security")
def ask(
    question: str,
    generator: Annotated[str, typer.Option(help="Address of the generation server.")] = "http://127.0.0.1:8000",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    *,
    security: dict[str, Any],
) -> None:
    """Ask the generation server one question; prints the answer and the passages that it rests on."""
    import httpx

    from openbook_core.errors import OpenbookError, UnavailableError

    options = dial_of(security).http(generator)
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens}
    try:
        reply = httpx.post(f"{generator}/v1/chat/completions", json=body, timeout=300, **options)
    except httpx.HTTPError as error:
        raise UnavailableError(f"{generator} does not answer: {error}; start it (openbook serve generator)") from error
    data = reply.json()
    if reply.status_code != 200:
        raise OpenbookError(f"{generator}: HTTP {reply.status_code}: {data['error']['message']}")
    retrieval = data["retrieval"]
    print(data["choices"][0]["message"]["content"].strip())
    print(
        f"\nsnapshot {retrieval['snapshot'][:12]}, cross attention {retrieval['cross_attention']}, shown to the model:"
    )
    for shown in retrieval["shown"]:
        print(f"  {shown['text']}  [chunk {', '.join(map(str, shown['chunk_ids']))}]")
