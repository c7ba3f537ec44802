"""Small snapshots, real processes and a checker for the retriever's tests."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers

from openbook_cli.demo.checker import ExactChecker
from openbook_core.clients import AdminClient, RetrieverClient, SearchResult
from openbook_core.errors import OpenbookError, PreconditionError
from openbook_core.fingerprint import Fingerprint
from openbook_core.rpc.server import RunningServer, start_server
from openbook_core.tokenizer import Tokenizer
from openbook_core.vectors import encode_vectors
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.snapshot import Snapshot
from openbook_proto.v1 import embedder_pb2, embedder_pb2_grpc

DATABASE = "book"
DIMENSION = 24
SHARDS = 3
MEMBERS = 2
WORDS = [
    "river",
    "mountain",
    "president",
    "capital",
    "border",
    "export",
    "island",
    "treaty",
    "harvest",
    "railway",
    "senate",
    "coast",
]


class TinyEncoder:
    """Each text's hashed character trigrams through a fixed random projection; `name` makes another encoder."""

    dimension, max_tokens, dtype = DIMENSION, 512, "float32"
    arithmetic: ClassVar[dict[str, str | int]] = {}

    def __init__(self, name: str = "tiny", *, sign: float = 1.0) -> None:
        self.fingerprint = Fingerprint({"architecture": name, "pooling": "sum"})
        self._sign = sign
        self._table = np.random.default_rng(7).standard_normal((512, DIMENSION))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = []
        for text in texts:
            padded = f"  {text}"
            vector = sum(self._table[zlib.crc32(padded[i : i + 3].encode()) % 512] for i in range(len(padded) - 2))
            rows.append(self._sign * vector / np.linalg.norm(vector))
        return np.asarray(rows, dtype=np.float32)


class TinyEmbedder(embedder_pb2_grpc.EmbedderServicer):
    """The embedder's RPCs over a TinyEncoder."""

    def __init__(self, encoder: TinyEncoder) -> None:
        self._encoder = encoder

    def Embed(self, request, context):
        vectors_ND = self._encoder.encode(list(request.texts))
        return embedder_pb2.EmbedReply(vectors=encode_vectors(vectors_ND), fingerprint=self._encoder.fingerprint.digest)

    def GetInfo(self, request, context):
        reply = embedder_pb2.GetInfoReply(model="tiny", dimension=DIMENSION)
        reply.fingerprint.record_json = self._encoder.fingerprint.to_json()
        reply.probe_vectors.CopyFrom(encode_vectors(self._encoder.encode(["a probe"])))
        return reply


def start_embedder(encoder: TinyEncoder | None = None) -> RunningServer:
    """A TinyEmbedder on a free port, in this process."""
    servicer = TinyEmbedder(encoder or TinyEncoder())
    return start_server(
        lambda server: embedder_pb2_grpc.add_EmbedderServicer_to_server(servicer, server),
        host="127.0.0.1",
        port=0,
        services=["openbook_proto.v1.Embedder"],
    )


def tiny_tokenizer() -> Tokenizer:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return Tokenizer(raw)


def build_edition(
    folder: Path, edition: str, *, documents: int = 40, shards: int = SHARDS, index: str = "auto"
) -> Path:
    """A snapshot in `shards` shards whose passages differ from other editions' in every document but each fourth."""
    rng = np.random.default_rng(zlib.crc32(edition.encode()))
    rows = []
    for number in range(documents):
        words = rng.choice(WORDS, size=30) if number % 4 else [WORDS[number % len(WORDS)]] * 30
        mark = edition if number % 4 else "all"
        rows.append({"id": f"doc-{number:03d}", "title": f"T{number}", "text": f"{mark} {number} " + " ".join(words)})
    source = folder / f"{edition}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = build_snapshot(
        [source],
        folder / edition,
        database=DATABASE,
        tokenizer=tiny_tokenizer(),
        encoder=TinyEncoder(),
        settings=BuildSettings(chunk_length=32, shards=shards, golden_queries=4, index=index),
    )
    return result.path


@dataclass
class Process:
    """A retriever process that says it is ready."""

    popen: subprocess.Popen[str]
    address: str

    def stop(self) -> int:
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            return self.popen.wait(60)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait(60)


def start_process(registry: Path | str, log: Path, *options: str) -> Process:
    """`python -m openbook_retriever` with `options`; its log is appended to `log`."""
    return ready(spawn(registry, log, *options), log)


def spawn(
    registry: Path | str, log: Path, *options: str, program: Sequence[str] = ("-m", "openbook_retriever")
) -> subprocess.Popen[str]:
    """The same, not waited for; `program`: what Python runs with the options."""
    options = ("--check-nice", "0", *options)
    with log.open("a") as stderr:
        return subprocess.Popen(
            [sys.executable, *program, "--registry", str(registry), *options],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        )


def ready(popen: subprocess.Popen[str], log: Path) -> Process:
    """Wait until it says that it is ready."""
    assert popen.stdout is not None
    line = popen.stdout.readline()
    if not line:
        raise AssertionError(f"exit code {popen.wait(10)}: {log.read_text()[-3000:]}")
    return Process(popen, json.loads(line)["address"])


def start_shard(registry: Path | str, log: Path, member: int, *options: str) -> Process:
    """One of two members."""
    return start_process(
        registry, log, "--role", "shard", "--member-index", str(member), "--member-count", "2", *options
    )


@contextmanager
def cluster(
    folder: Path, registry: Path | str, *options: str, router: Sequence[str] = (), replicas: int = 1, routers: int = 1
) -> Iterator[list[Process]]:
    """The routers, then shards 0 and 1 of MEMBERS, so often; the list may be changed, what is in it at the end is stopped."""
    log = folder / "log.jsonl"
    members = [("--member-index", str(member), "--member-count", str(MEMBERS)) for member in range(MEMBERS)] * replicas
    popens = [spawn(registry, log, "--role", "router", *router) for _ in range(routers)]
    popens += [spawn(registry, log, "--role", "shard", *member, *options) for member in members]
    processes: list[Process] = []
    try:
        processes.extend(ready(popen, log) for popen in popens)
        yield processes
    finally:
        for process in processes:
            if process.popen.poll() is None:
                process.popen.terminate()
        for popen in {*popens, *(process.popen for process in processes)}:
            Process(popen, "").stop()


@contextmanager
def start_router_alone(folder: Path, registry: Path) -> Iterator[str]:
    """The address of a router without any shard."""
    process = start_process(registry, folder / "log.jsonl", "--role", "router")
    try:
        yield process.address
    finally:
        process.stop()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 240.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


@dataclass
class Load:
    """Threads that search without ever retrying; every reply is kept for the checker."""

    address: str
    queries: NDArray[np.float32]
    k: int = 4
    threads: int = 3
    replies: list[list[tuple[int, SearchResult]]] = field(default_factory=list)
    failures: list[OpenbookError] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        self.replies = [[] for _ in range(self.threads)]
        workers = [threading.Thread(target=self._run, args=(stop, number)) for number in range(self.threads)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            stop.set()
            for worker in workers:
                worker.join()

    def _run(self, stop: threading.Event, number: int) -> None:
        turn = number
        with RetrieverClient(self.address) as client:
            while not stop.is_set():
                query = turn % len(self.queries)
                turn += 1
                try:
                    result = client.search(
                        DATABASE, self.queries[query : query + 1], self.k, tokens=True, text=True, documents=True
                    )
                    self.replies[number].append((query, result))
                except OpenbookError as error:
                    self.failures.append(error)
                time.sleep(0.002)

    def mixed(self, snapshots: dict[str, Snapshot]) -> list[str]:
        """From outside: replies that are not, in ids, scores, text and tokens, the answer of the snapshot they name."""
        exact = {name: opened.search(self.queries, self.k) for name, opened in snapshots.items()}
        checker = ExactChecker({name: (hits.ids_QK, hits.scores_QK) for name, hits in exact.items()})
        wrong = []
        for query, result in (item for replies in self.replies for item in replies):
            opened = snapshots[result.snapshot]
            ids = exact[result.snapshot].ids_QK[query]
            same = not checker.differs(result.snapshot, query, result.ids[0], result.scores[0])
            found = [np.asarray([i]) for i in ids if i >= 0]
            texts = [opened.shard_of(int(i[0])).text(i)[0] for i in found]
            tokens = np.concatenate([opened.shard_of(int(i[0])).tokens(i)[0] for i in found])
            same &= result.chunks.texts == texts and np.array_equal(result.chunks.tokens, tokens)
            if not same:
                wrong.append(f"query {query} epoch {result.epoch}: {result.ids[0]} instead of {ids}")
        return wrong

    def epochs_go_back(self) -> bool:
        """Whether some thread saw a lower epoch after a higher one."""
        epochs = [[result.epoch for _, result in replies] for replies in self.replies]
        return any(later < earlier for seen in epochs for earlier, later in itertools.pairwise(seen))


def move(admin: AdminClient, snapshot: str) -> int:
    """Prepare, wait until it can be activated, activate; returns the epoch."""
    admin.prepare(DATABASE, snapshot)
    deadline = time.monotonic() + 240
    while True:
        try:
            return admin.activate(DATABASE, snapshot).epoch
        except PreconditionError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
