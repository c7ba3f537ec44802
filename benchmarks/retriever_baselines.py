"""Servers as they are commonly written, for comparison: the index in memory, neighbours with their tokens.

    python benchmarks/retriever_baselines.py pickle|http INDEX TOKENS THREADS

`pickle`: pickled calls over a socket, a thread for each connection, as distributed-faiss has it. `http`: FastAPI with
JSON both ways. Each prints its port.
"""

from __future__ import annotations

import sys
import threading
from multiprocessing.connection import Client, Listener
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

_KEY = b"benchmark"
_CHUNK = 64


class Searcher:
    """Faiss and a token file."""

    def __init__(self, index: str, tokens: str) -> None:
        self._index: Any = faiss.read_index(index)
        self._tokens = np.memmap(tokens, dtype=np.uint16, mode="r").reshape(-1, _CHUNK)

    def search(self, queries_QD: NDArray[np.float32], k: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        scores_QK, ids_QK = self._index.search(queries_QD, k)
        after_QK = np.minimum(ids_QK + 1, len(self._tokens) - 1)
        return ids_QK, scores_QK, np.concatenate([self._tokens[ids_QK], self._tokens[after_QK]], axis=2)


def serve_pickle(searcher: Searcher, threads: int) -> None:
    def serve(connection: Any) -> None:
        faiss.omp_set_num_threads(threads)
        try:
            while True:
                method, arguments = connection.recv()
                connection.send(getattr(searcher, method)(*arguments))
        except EOFError:
            connection.close()

    with Listener(("127.0.0.1", 0), backlog=64, authkey=_KEY) as listener:
        print(listener.address[1], flush=True)
        while True:
            threading.Thread(target=serve, args=(listener.accept(),), daemon=True).start()


def serve_http(searcher: Searcher, threads: int) -> None:
    import socket

    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/search")
    def search(body: dict[str, Any]) -> dict[str, Any]:
        faiss.omp_set_num_threads(threads)
        ids_QK, scores_QK, tokens = searcher.search(np.asarray(body["queries"], np.float32), body["k"])
        return {"ids": ids_QK.tolist(), "scores": scores_QK.tolist(), "tokens": tokens.tolist()}

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([listening])


class PickleCaller:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._connection = Client(("127.0.0.1", port), authkey=_KEY)

    def __call__(self, queries_QD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        self._connection.send(("search", (queries_QD, k)))
        ids: NDArray[np.int64] = self._connection.recv()[0]
        return ids

    def close(self) -> None:
        self._connection.close()


class HttpCaller:
    """One connection, kept open."""

    def __init__(self, port: int) -> None:
        import http.client

        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def __call__(self, queries_QD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        import json

        body = json.dumps({"queries": queries_QD.tolist(), "k": k})
        self._connection.request("POST", "/search", body, {"Content-Type": "application/json"})
        return np.asarray(json.loads(self._connection.getresponse().read())["ids"], dtype=np.int64)

    def close(self) -> None:
        self._connection.close()


if __name__ == "__main__":
    kind, index_file, token_file, thread_count = sys.argv[1:]
    {"pickle": serve_pickle, "http": serve_http}[kind](Searcher(index_file, token_file), int(thread_count))
