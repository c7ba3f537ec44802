"""Connections of the HTTP servers send what is written at once."""

from __future__ import annotations

import asyncio
import socket

from openbook_core.http import listen


def test_an_answer_in_two_writes_does_not_wait_in_between() -> None:
    async def nodelay() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen("127.0.0.1", 0)
        async with await asyncio.start_server(serve, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            answer = await asyncio.wait_for(found, 10)
            writer.close()
        return answer

    assert asyncio.run(nodelay()) != 0
