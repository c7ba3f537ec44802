"""The ground of the first path: how fast a snapshot is built, searched and decoded from, each against its peer.

    python benchmarks/first_path.py [--quick] [--json FILE]

- build: chunks per second of wall time, and the share of it inside the encoder's network (padding and pooling
  included; its tokenizer, the chunker, files and checksums are not);
- Search: queries as vectors through the router, two shard processes and gRPC, against the same index files called
  in-process through Faiss, in turns in the same run;
- decoding: SmolLM2 OFF, and ON with RETRO parts of random weights and open gates. ON costs what a trained model's
  chunked cross attention costs, but says nothing sensible; the search for the neighbours is not in it;
- memory: what of a shard process is private against what it maps. A first, tiny snapshot brings what any snapshot costs
  (its tokenizer above all), so that what the next one adds is what depends on the book.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from first_path_figures import report, summarise
from measure import ROOT, anonymous_bytes, environment, in_turns, mapped_files, run_benchmark

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from openbook_core.clients import RetrieverClient

EDITIONS = ROOT / "examples" / "factbook"
SOURCE = EDITIONS / "2015-11-18.jsonl.zst"
PEOPLE = EDITIONS / "people_2015-11-18_2026-02-19.jsonl.zst"
DATABASE, CONTROL, SHARDS, K = "factbook", "control", 2, 4
SEARCH_BATCHES, DECODE_BATCHES = (1, 64), (1, 4)
NEIGHBORS, NEIGHBOR_LENGTH, PROMPT_CHUNKS = 2, 128, 2
GATE = 0.1
_STARTED = time.monotonic()


@dataclass(frozen=True)
class Size:
    """How much is measured. `documents` None takes the whole edition.

    No round of a part begins that would take it past its seconds, once it has `least_rounds` (a build: one); `limit_s`
    ends the whole without a result.
    """

    documents: int | None
    builds: int
    build_seconds: float
    search_rounds: int
    search_seconds: float
    decode_rounds: int
    decode_seconds: float
    least_rounds: int
    limit_s: int


QUICK = Size(
    documents=6,
    builds=3,
    build_seconds=20,
    search_rounds=5,
    search_seconds=8,
    decode_rounds=3,
    decode_seconds=52,
    least_rounds=1,
    limit_s=117,
)
FULL = Size(
    documents=None,
    builds=3,
    build_seconds=600,
    search_rounds=15,
    search_seconds=60,
    decode_rounds=7,
    decode_seconds=180,
    least_rounds=3,
    limit_s=2400,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 with all figures, 1 or 130 (Ctrl-C) without; nothing is written then."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small part of the edition, under two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and all trials")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    return run_benchmark(lambda work: run(size, work), report, limit_s=size.limit_s, json_file=options.json)


def run(size: Size, work: Path) -> dict[str, Any]:
    """All parts, one after another, so that none slows another; the services run during the search alone."""
    begun, circumstances = time.monotonic(), environment()
    snapshot, control, build = measure_build(size, work)
    search, memory, prompts_LN, neighbors_LNK = measure_search(size, snapshot, control, build["dtype"], work)
    decode = measure_decode(size, prompts_LN, neighbors_LNK)
    result = summarise(build, search, decode, memory)
    circumstances["load_1m_after"] = round(os.getloadavg()[0], 2)
    command = f"python benchmarks/first_path.py{' --quick' if size is QUICK else ''}"
    result["raw"] |= (
        {"command": command} | circumstances | {"seconds": round(time.monotonic() - begun, 1), "size": asdict(size)}
    )
    return result


def measure_build(size: Size, work: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Build the same snapshot up to `size.builds` times with one encoder; the last stays. Loading the encoder is not timed.

    Also a control with one document in each shard, to tell fixed memory from memory that grows with the book.
    """
    from timed_encoder import TimedEncoder

    from openbook_core.tokenizer import Tokenizer
    from openbook_core.weights import DEFAULT_EMBEDDER, DEFAULT_MODEL
    from openbook_database.build.run import build_snapshot
    from openbook_database.build.settings import BuildSettings

    _say("loading the encoder")
    tokenizer, encoder = Tokenizer.load(DEFAULT_MODEL), TimedEncoder.load(DEFAULT_EMBEDDER)
    assert isinstance(encoder, TimedEncoder)
    settings = BuildSettings(shards=SHARDS, limit_documents=size.documents)
    outs: list[Path] = []

    def trial() -> dict[str, Any]:
        outs.append(work / f"snapshot-{len(outs)}")
        _say(f"building a snapshot of {size.documents or 'all'} documents ({len(outs)} of up to {size.builds})")
        encoder.reset()
        start = time.perf_counter()
        built = build_snapshot(
            [SOURCE], outs[-1], database=DATABASE, tokenizer=tokenizer, encoder=encoder, settings=settings
        )
        wall_s = time.perf_counter() - start
        times = {"wall_s": wall_s, "encode_s": encoder.encode_s, "network_s": encoder.network_s}
        return {"chunks": built.chunks, "documents": built.documents, **times, "stage_s": built.seconds}

    trials = in_turns({"build": trial}, size.builds, budget_s=size.build_seconds, least=1)["build"]
    control = work / "control"
    small = BuildSettings(shards=SHARDS, limit_documents=SHARDS)
    build_snapshot([SOURCE], control, database=CONTROL, tokenizer=tokenizer, encoder=encoder, settings=small)
    return outs[-1], control, {"dtype": encoder.dtype, "model": DEFAULT_EMBEDDER, "trials": trials}


def measure_search(
    size: Size, snapshot: Path, control: Path, encoder_dtype: str, work: Path
) -> tuple[dict[str, Any], dict[str, Any], NDArray[np.int64], list[Any]]:
    """Search and memory of the running services; and, for decoding, prompts and neighbours from the snapshot."""
    import numpy as np
    from decoding import material
    from peer_index import PeerIndex

    from openbook_cli.demo.processes import Processes
    from openbook_cli.swap import swap_to
    from openbook_core.clients import AdminClient, EmbedderClient, RetrieverClient
    from openbook_trainer.rows import read_rows

    registry = work / "registry"
    registry.mkdir()
    _say(f"starting the embedder, {SHARDS} shards and the router")
    with Processes(work / "logs") as processes, ExitStack() as clients:
        embedder = processes.start("embedder", ["serve", "embedder", "--port", "0", "--dtype", encoder_dtype])
        serve = ["serve", "retriever", "--port", "0", "--registry", str(registry), "--role"]
        for shard in range(SHARDS):
            members = ["--member-index", str(shard), "--member-count", str(SHARDS)]
            processes.start(f"shard-{shard}", [*serve, "shard", *members])
        router = processes.start("router", [*serve, "router", "--embedder", embedder])
        shards = {name: pid for name, pid in processes.pids().items() if name.startswith("shard-")}
        admin = clients.enter_context(AdminClient(router))

        def private() -> dict[str, int]:
            return {name: anonymous_bytes(_proc(pid, "smaps_rollup")) for name, pid in shards.items()}

        def serve_snapshot(database: str, folder: Path) -> None:
            swap_to(admin, database, admin.register(database, str(folder)).snapshot, deadline_s=60)

        empty = private()
        serve_snapshot(CONTROL, control)
        controlled = private()
        serve_snapshot(DATABASE, snapshot)
        questions = [row["question"] for _, row in read_rows(PEOPLE) if row["clean"]]
        embed = clients.enter_context(EmbedderClient(embedder)).embed
        queries_ND = np.concatenate([embed(questions[i : i + 16], "query").vectors for i in range(0, 128, 16)])
        client, peer = clients.enter_context(RetrieverClient(router)), PeerIndex(snapshot)
        same = peer.agreement(client.search(DATABASE, queries_ND, K), queries_ND)
        trials = {f"batch_{batch}": _search_trials(size, client, peer, queries_ND, batch) for batch in SEARCH_BATCHES}
        memory = {
            name: {
                "control_documents": SHARDS,
                "anonymous_empty": empty[name],
                "anonymous_control": controlled[name],
                "anonymous_after": anonymous,
                **asdict(mapped_files(_proc(pid, "smaps"), snapshot)),
            }
            for (name, pid), anonymous in zip(shards.items(), private().values(), strict=True)
        }
        prompts, neighbors = material(
            client, DATABASE, queries_ND, max(DECODE_BATCHES), PROMPT_CHUNKS, NEIGHBORS, NEIGHBOR_LENGTH
        )
    index = {"factory": "Flat", "exact": True, "vectors": peer.rows, "dimension": peer.dimension, "shards": SHARDS}
    search = {
        "index": index,
        "k": K,
        "same_scores_as_peer": same,
        "concurrent_callers": 1,
        "batches": list(SEARCH_BATCHES),
    }
    return search | {"trials": trials}, memory, prompts, neighbors


def _search_trials(
    size: Size, client: RetrieverClient, peer: Any, queries_ND: NDArray[np.float32], batch: int
) -> dict[str, list[dict[str, float]]]:
    _say(f"searching, {batch} queries a call")
    calls = 128 if batch == 1 else 24
    batches = [queries_ND[i : i + batch] for i in range(0, len(queries_ND), batch)]

    def side(call: Callable[[NDArray[np.float32]], object]) -> Callable[[], dict[str, float]]:
        def trial() -> dict[str, float]:
            seconds = []
            for number in range(calls):
                start = time.perf_counter()
                call(batches[number % len(batches)])
                seconds.append(time.perf_counter() - start)
            return {"p50_ms": median(seconds) * 1e3, "queries_per_s": calls * batch / sum(seconds)}

        trial()  # warm
        return trial

    sides = {
        "service": side(lambda queries: client.search(DATABASE, queries, K)),
        "in_process": side(lambda queries: peer.search(queries, K)),
    }
    return in_turns(sides, size.search_rounds, budget_s=size.search_seconds, least=size.least_rounds)


def measure_decode(size: Size, prompts: NDArray[np.int64], neighbors: list[Any]) -> dict[str, Any]:
    """Decoding steps per second in-process, OFF and ON step by step in turns; each trial is one whole chunk."""
    from decoding import Decoder

    from openbook_core.weights import DEFAULT_MODEL

    _say("loading the language model")
    decoder = Decoder(DEFAULT_MODEL, prompts, neighbors, gate=GATE)
    trials = {}
    for batch in DECODE_BATCHES:
        _say(f"decoding, {batch} sequences at once")
        budget_s = size.decode_seconds / len(DECODE_BATCHES)
        rounds = in_turns(
            {"both": partial(decoder.round, batch)}, size.decode_rounds, budget_s=budget_s, least=size.least_rounds
        )["both"]
        trials[f"batch_{batch}"] = {side: [asdict(both[side]) for both in rounds] for side in ("off", "on")}
    return {
        "model": DEFAULT_MODEL,
        "dtype": decoder.dtype,
        "on_means": (
            f"cross attention in layers {', '.join(map(str, decoder.cross_layers))} with {NEIGHBORS} neighbours of up "
            f"to {decoder.neighbor_length} tokens a chunk; RETRO parts random, all gates {GATE}; without the search"
        ),
        "batches": list(DECODE_BATCHES),
        "logits_differ_by": decoder.on_off_difference(),
        "trials": trials,
    }


def _proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def _say(text: str) -> None:
    print(f"[first_path {time.monotonic() - _STARTED:5.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
