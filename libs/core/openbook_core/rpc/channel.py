"""Client channels with the limits that both sides share."""

from __future__ import annotations

import grpc

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
LIMITS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]


def open_channel(address: str) -> grpc.Channel:
    """A channel to HOST:PORT. It never retries by itself: who retries decides it where it can be counted."""
    return grpc.insecure_channel(
        address,
        options=[
            *LIMITS,
            ("grpc.enable_retries", 0),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.initial_reconnect_backoff_ms", 100),
        ],
    )
