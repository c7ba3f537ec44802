"""Typed clients of the services: numpy in, numpy out, OpenbookError on failure."""

from openbook_core.clients.admin import AdminClient
from openbook_core.clients.embedder import EmbedderClient, EmbedderInfo, EmbedResult
from openbook_core.clients.filters import where
from openbook_core.clients.retriever import ChunkTable, RetrieverClient, SearchResult

__all__ = [
    "AdminClient",
    "ChunkTable",
    "EmbedResult",
    "EmbedderClient",
    "EmbedderInfo",
    "RetrieverClient",
    "SearchResult",
    "where",
]
