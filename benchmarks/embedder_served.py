"""The embedder as a service under its callers, beside infinity's server and the bare loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from embedder_loads import CONNECT, Caller, GrpcCaller, HttpCaller, closed_loop, open_loop
from embedder_offline import BareLoop
from embedder_process import EmbedderProcess
from embedder_sides import POLICIES, Infinity
from measure import in_turns, processor_s

from openbook_database.registry.local_redis import free_port

CALLERS = 16
SHARES = (0.3, 0.6, 0.9)


@contextmanager
def start_embedder(work: Path, starts: int, options: Sequence[str]) -> Iterator[tuple[EmbedderProcess, list[float]]]:
    """Start it `starts` times, one after another; the last runs on. Also the seconds of each start."""
    seconds = []
    for number in range(starts - 1):
        with EmbedderProcess(work / f"embedder-{number}.log", options) as server:
            seconds.append(server.start_s)
    with EmbedderProcess(work / "embedder.log", options) as server:
        yield server, [*seconds, server.start_s]


@contextmanager
def start_infinity(
    folder: Path, dtype: str, batches: Sequence[int], texts: Sequence[str], work: Path
) -> Iterator[tuple[dict[str, Infinity], Any]]:
    """Two servers of it, and what each setting took for `texts`: "infinity" in our `dtype` with the quickest of `batches`
    and POLICIES, and "infinity_default" with nothing set (32 texts a batch, float32 on a processor)."""
    with ExitStack() as stack:

        def start(settings: dict[str, Any], policy: str) -> Infinity:
            log = work / f"infinity-{settings.get('batch')}-{policy}.log"
            server = stack.enter_context(Infinity(folder, free_port(), settings, policy, log))
            _infinity_trial(server, texts[:32], 2)  # warm
            return server

        tried = {
            f"{batch} {policy}": start({"dtype": dtype, "batch": batch}, policy)
            for batch in batches
            for policy in POLICIES
        }
        tries = {label: partial(_infinity_trial, server, texts, 32) for label, server in tried.items()}
        trials = in_turns(tries, 2, budget_s=60)
        best = min(trials, key=lambda label: min(trial["seconds"] for trial in trials[label]))
        for label, server in tried.items():
            if label != best:
                server.close()
        yield (
            {"infinity": tried[best], "infinity_default": start({}, "default")},
            {"best": best, "dtype": dtype, "trials": trials},
        )


def measure_served(
    server: EmbedderProcess,
    infinity: Mapping[str, Infinity],
    bare: BareLoop,
    bare_batch: int,
    texts: Sequence[str],
    per_call: int,
    model: str,
    **limits: Any,
) -> dict[str, list[dict[str, float]]]:
    """Trials of all sides in turns at `per_call` texts a call, CALLERS at once; `limits` as of `in_turns`.

    A trial is texts, seconds and processor time; ours also has their tokens, and the padded tokens and batches that it
    made of them.
    """
    tokens = sum(bare.engine.tokenize([*texts, *[CONNECT] * CALLERS]).counts)

    def bare_trial() -> dict[str, float]:
        return {"texts": len(texts), **bare.run(texts, bare_batch)}

    def ours(callers: Sequence[Caller]) -> dict[str, float]:
        return _our_trial(server, callers, texts, per_call) | {"tokens": tokens}

    def grpc() -> dict[str, float]:
        return ours([GrpcCaller(server.address) for _ in range(CALLERS)])

    def http() -> dict[str, float]:
        return ours([HttpCaller(server.http, "/v1/embeddings", model) for _ in range(CALLERS)])

    closed_loop([GrpcCaller(server.address) for _ in range(CALLERS)], texts[:CALLERS], 1)  # warm
    sides: dict[str, Callable[[], dict[str, float]]] = {"bare": bare_trial, "grpc": grpc, "http": http}
    sides |= {name: partial(_infinity_trial, peer, texts, per_call) for name, peer in infinity.items()}
    return in_turns(sides, **limits)


def measure_latency(
    server: EmbedderProcess, texts: Sequence[str], capacity: float, seconds: float, seed: int
) -> list[dict[str, Any]]:
    """Calls of one text at SHARES of `capacity` calls a second."""
    return [{"share": share, **open_loop(server.address, texts, share * capacity, seconds, seed)} for share in SHARES]


def _our_trial(
    server: EmbedderProcess, callers: Sequence[Caller], texts: Sequence[str], per_call: int
) -> dict[str, float]:
    names = {
        "padded_tokens": "openbook_embedder_batch_tokens_sum",
        "batches": "openbook_embedder_batch_tokens_count",
    }
    before = {key: server.metric(name) for key, name in names.items()}
    trial = _loop(server.pid, callers, texts, per_call)
    return trial | {key: server.metric(name) - before[key] for key, name in names.items()}


def _infinity_trial(infinity: Infinity, texts: Sequence[str], per_call: int) -> dict[str, float]:
    callers = [HttpCaller(infinity.url, "/embeddings", infinity.model) for _ in range(CALLERS)]
    with infinity.turn():
        return _loop(infinity.pid, callers, texts, per_call)


def _loop(pid: int, callers: Sequence[Caller], texts: Sequence[str], per_call: int) -> dict[str, float]:
    """`cpu_s` is the server's and its callers'; they connect in it, which a trial of hundreds of texts does not show."""
    before = processor_s(pid) + processor_s()
    trial = closed_loop(callers, texts, per_call)
    return trial | {"cpu_s": processor_s(pid) + processor_s() - before}
