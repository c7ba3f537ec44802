"""gRPC plumbing that every service and client shares."""
