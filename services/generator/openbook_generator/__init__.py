"""The generator: an OpenAI-compatible service whose decoder reads passages of the live snapshot."""
