"""Servers as they are commonly written, for comparison: the index in memory, neighbours with their tokens.

    python benchmarks/retriever_baselines.py pickle|http|grpc INDEX TOKENS THREADS
    python benchmarks/retriever_baselines.py front PORT

`pickle`: pickled calls over a socket, a thread for each connection, as distributed-faiss has it. `http`: FastAPI with
JSON both ways. `grpc`: gRPC's threads around Faiss, arrays as bytes; behind `front`, which hands each call on to PORT, it
is what any router and shard in Python cost at least. Each prints its port.
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
_METHOD, _TIMEOUT_S, _GRPC_THREADS = "/benchmark.Retriever/Search", 30.0, 8


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

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([listening])


def serve_grpc(searcher: Searcher, threads: int) -> None:
    def search(request: bytes, context: Any) -> bytes:
        faiss.omp_set_num_threads(threads)
        k, dimension = np.frombuffer(request, "<i4", 2).tolist()
        found = searcher.search(np.frombuffer(request, "<f4", offset=8).reshape(-1, dimension), k)
        return b"".join(array.tobytes() for array in found)

    _serve_bytes(search)


def serve_front(port: int) -> None:
    import grpc

    search = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary(_METHOD)
    _serve_bytes(lambda request, context: search(request, timeout=_TIMEOUT_S))


def _serve_bytes(answer: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(_GRPC_THREADS))
    service, _, method = _METHOD.lstrip("/").partition("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(answer)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


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


class GrpcCaller:
    """One channel."""

    def __init__(self, port: int) -> None:
        import grpc

        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._search = self._channel.unary_unary(_METHOD)

    def __call__(self, queries_QD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        head = np.array([k, queries_QD.shape[1]], "<i4").tobytes()
        reply = self._search(head + queries_QD.tobytes(), timeout=_TIMEOUT_S)
        return np.frombuffer(reply, "<i8", len(queries_QD) * k).reshape(-1, k)

    def close(self) -> None:
        self._channel.close()


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
    if sys.argv[1] == "front":
        serve_front(int(sys.argv[2]))
    else:
        kind, index_file, token_file, thread_count = sys.argv[1:]
        serve: Any = {"pickle": serve_pickle, "http": serve_http, "grpc": serve_grpc}[kind]
        serve(Searcher(index_file, token_file), int(thread_count))
