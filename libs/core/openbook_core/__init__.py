"""What every part shares: configuration, errors, telemetry, gRPC plumbing and the typed clients."""

import os

# gRPC reads it when it is first imported. Its own event engine hands each call from thread to thread once more: calls from
# Python take a tenth to a sixth more processor time with it (docs/log.md).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
