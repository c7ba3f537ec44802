"""A connection of a certain age takes no new calls, and calls that are under way end."""

from __future__ import annotations

import time

import grpc
import pytest

from openbook_core.rpc.server import start_server


@pytest.mark.parametrize("age_s", [None, 0.4])
def test_old_connections_are_left_for_new_ones(age_s: float | None) -> None:
    def peer(request: bytes, context: grpc.ServicerContext) -> bytes:
        time.sleep(float(request))
        return context.peer().encode()

    handlers = {"Peer": grpc.unary_unary_rpc_method_handler(peer, bytes, bytes)}
    running = start_server(
        lambda server: server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),)),
        host="127.0.0.1",
        port=0,
        services=[],
        max_connection_age_s=age_s,
    )
    try:
        with grpc.insecure_channel(running.address) as channel:
            call = channel.unary_unary("/test.Test/Peer")
            long = call.future(b"2")
            peers, failed, end = set(), [], time.monotonic() + 1.6
            while time.monotonic() < end:
                try:
                    peers.add(call(b"0", timeout=10))
                except grpc.RpcError as error:  # sent as the connection ended
                    failed.append(error.code())
                    peers.add(call(b"0", timeout=10))
            assert long.result(timeout=10) in peers, "a call ends on the connection it began on"
    finally:
        running.stop(0)
    assert set(failed) <= {grpc.StatusCode.UNAVAILABLE}
    assert len(peers) == 1 if age_s is None else len(peers) > 2
