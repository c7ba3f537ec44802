"""Text to vectors: the encoder (`engine`), batching between callers (`batching`), gRPC service (`service`, `app`)."""
