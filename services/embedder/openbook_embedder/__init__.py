"""Text to vectors: the encoder (`engine`), batching across callers (`batching`), the gRPC service (`service`, `app`)."""
