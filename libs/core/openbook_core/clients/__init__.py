"""Typed clients of the services: numpy in, numpy out, OpenbookError on failure."""

from openbook_core.clients.admin import AdminClient
from openbook_core.clients.embedder import EmbedderClient, EmbedderInfo, EmbedResult
from openbook_core.clients.filters import where
from openbook_core.clients.retries import Retries
from openbook_core.clients.retriever import ChunkTable, RetrieverClient, SearchResult
from openbook_core.clients.retriever_async import AsyncRetrieverClient

__all__ = [
    "AdminClient",
    "AsyncRetrieverClient",
    "ChunkTable",
    "EmbedResult",
    "EmbedderClient",
    "EmbedderInfo",
    "Retries",
    "RetrieverClient",
    "SearchResult",
    "where",
]
