"""What every part shares: configuration, errors, telemetry, gRPC plumbing and the typed clients."""
