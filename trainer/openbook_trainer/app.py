"""Wiring and start of a training run."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from openbook_core.clients import RetrieverClient
from openbook_core.config import load_config, render_config
from openbook_core.errors import ArgumentError, ConfigError, OpenbookError
from openbook_core.telemetry import setup_logging
from openbook_core.tokenizer import Tokenizer
from openbook_model import RetroModel, weights_hash
from openbook_model import save as save_model
from openbook_trainer import checkpoint
from openbook_trainer.alone import alone_in
from openbook_trainer.cached import CachedSource, snapshot_of
from openbook_trainer.compute import compute_dtype, prepare_blocks
from openbook_trainer.config import TrainConfig
from openbook_trainer.data import ChunkedCorpus, SequenceOrder, read_corpus
from openbook_trainer.distributed import World, be_deterministic, process_group, shard, whole
from openbook_trainer.evaluation import Evaluator
from openbook_trainer.loop import Loop
from openbook_trainer.metrics import Metrics
from openbook_trainer.neighbours import LiveSource, NoSource, pin_snapshot
from openbook_trainer.optimiser import average_of, make_optimisers
from openbook_trainer.retrofit import rate_scale, starting_model
from openbook_trainer.saver import Saver
from openbook_trainer.stopping import EXIT_CODE, StopRequest, TerminatedError
from openbook_trainer.tasks import config_class, run_in_one_process

_FIRST_ENDS_WITHIN_S = 60.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GO_ON = "the last checkpoint is whole, run the same command to go on"
Found = tuple[Path, checkpoint.RunState] | None


def main(arguments: list[str] | None = None) -> int:
    """The command line: exit code 0, 2 for settings that cannot be used, 1 for another OpenbookError or a full
    disk, 130 after Ctrl-C, 143 after SIGTERM, which leaves a checkpoint of the step that it came in.

    Of several processes the first says what went wrong. The others wait until the launcher ends them, which it does as
    soon as the first has ended, so that the exit code is the first's.
    """
    parser = argparse.ArgumentParser(
        prog="openbook train", description="Train RETRO against a running retriever or a neighbour cache."
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see examples/train/")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override one setting")
    parser.add_argument("--print-config", action="store_true", help="show the resolved settings and stop")
    parser.add_argument(
        "--allow-changed",
        action="append",
        default=[],
        metavar="FIELD",
        help="go on although this setting differs from the checkpoint's; repeatable, recorded in metrics and checkpoints",
    )
    options = parser.parse_args(arguments)
    setup_logging("trainer")
    first = os.environ.get("RANK", "0") == "0"
    asked_to_stop = StopRequest()
    try:
        config, origin = load_config(config_class(options.config), options.config, options.set)
        if options.print_config:
            print(render_config(config, origin))
        elif isinstance(config, TrainConfig):
            train(config, options.allow_changed, asked_to_stop)
        else:
            run_in_one_process(config, options.allow_changed)
    except TerminatedError as error:
        if first:
            print(error.message, file=sys.stderr)
        return EXIT_CODE
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        print(f"error: {error.filename or 'the disk'}: {error.strerror}; {_GO_ON}", file=sys.stderr)
        return 1
    except OpenbookError as error:
        if not first:
            if asked_to_stop:
                return 1  # the launcher ends this process, since another one has ended and said why
            time.sleep(_FIRST_ENDS_WITHIN_S)
        print(f"error: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    except KeyboardInterrupt:
        if first:
            print(f"interrupted; {_GO_ON}", file=sys.stderr)
        return 130
    return 0


def train(
    config: TrainConfig, allow_changed: Collection[str] = (), asked_to_stop: StopRequest | None = None
) -> dict[str, Any]:
    """Run, or go on with, the training that `config` describes; the last line of standard output is the summary.

    The summary has steps, loss_off, loss_on, loss_shuffled, tokens, seconds, tokens_per_s, neighbour_wait_share,
    mfu, dtype, masked_batches, skipped_steps, stopped_by, snapshot, checkpoint, model and weights_hash. Under torchrun
    every process calls this. `allow_changed` names settings that may differ from those of the checkpoint that is resumed;
    `asked_to_stop` is set by a SIGTERM meanwhile. Raises OpenbookError.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    asked_to_stop = StopRequest() if asked_to_stop is None else asked_to_stop
    with asked_to_stop.heeded(), process_group(config.device) as world:
        if world.device.type == "cpu":
            be_deterministic()
        with alone_in(config.out, world):
            summary = _train(config, world, allow_changed, asked_to_stop)
        if world.first:
            print(json.dumps(summary), flush=True)
        return summary


def _train(
    config: TrainConfig, world: World, allow_changed: Collection[str], asked_to_stop: StopRequest
) -> dict[str, Any]:
    tokenizer = world.together(lambda: _tokenizer(config, world))
    m = config.model.chunk_length
    found = world.together(lambda: checkpoint.newest(config.out / "checkpoints"))
    snapshot = world.from_first(lambda: _pin(config, tokenizer, found, allow_changed))
    corpus, held_out = world.together(lambda: read_corpus(config.corpus, tokenizer, m))
    source = world.together(lambda: _source(config, snapshot, corpus, held_out))
    model, base_hash = world.together(lambda: starting_model(config, tokenizer))
    cache_digest = source.digest if isinstance(source, CachedSource) else ""
    digests = f"{corpus.digest()} {held_out.digest()}", cache_digest, base_hash
    try:
        config = _with_dtype(config, world, found)
        state = world.together(lambda: _start(config, *digests, snapshot, found, allow_changed))
        if isinstance(source, LiveSource):
            live = source
            world.together(lambda: live.check_exclusions(corpus.document_ids))
        batch, evaluation = config.batch, config.evaluation
        asks = config.retrieval is not None
        order = SequenceOrder(corpus, batch, config.seed, asks=asks)
        held_out_order = SequenceOrder(held_out, batch, config.seed, asks=asks, part="the held-out part of the corpus")
        evaluator = world.together(lambda: Evaluator(held_out_order, source, evaluation.sequences, batch.micro))
        model = model.to(world.device).train()
        prepare_blocks(model, config.compute)
        shard(model, world, getattr(torch, config.compute.dtype))
        quick = config.compute.dtype == "bfloat16" or world.device.type == "cuda"
        optimisers = make_optimisers(model, config.optimiser, rate_scale(config, model), bfloat16=quick)
        if found is not None:
            resumed_from, _ = found
            world.together(lambda: checkpoint.restore(resumed_from, model, optimisers))
        metrics = world.together(lambda: _metrics(config, world, state))
        for change in state.changes:
            metrics.note(change)
        saver = Saver(config.out / "checkpoints", world, config.checkpoint.keep)
        parts = config, world, model, optimisers, order, source, evaluator, metrics, state, saver, asked_to_stop
        try:
            finished = Loop(*parts).run()
        finally:
            saver.close()
        metrics.close()
    finally:
        source.close()
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    average = {name: whole(each).cpu() for name, each in average_of(optimisers, model).items()}
    if average:
        world.from_first(lambda: _export(config, {**weights, **average}, tokenizer, "model-average"))
    return {
        "steps": finished.step,
        **asdict(finished.held_out),
        "tokens": finished.tokens,
        "seconds": round(finished.seconds, 3),
        "tokens_per_s": finished.tokens / finished.seconds,
        "neighbour_wait_share": finished.wait_share,
        "mfu": finished.mfu,
        "dtype": config.compute.dtype,
        "masked_batches": finished.masked_batches,
        "skipped_steps": finished.skipped_steps,
        "stopped_by": finished.stopped_by,
        "snapshot": snapshot,
        "checkpoint": str(finished.checkpoint),
        "model": str(config.out / "model"),
        "weights_hash": world.from_first(lambda: _export(config, weights, tokenizer, "model")),
    }


def _tokenizer(config: TrainConfig, world: World) -> Tokenizer:
    """The corpus's tokenizer. Raises ConfigError where batch or vocabulary do not fit the processes or the model."""
    if config.batch.sequences % (config.batch.micro * world.size):
        raise ConfigError(
            f"batch.sequences {config.batch.sequences} is not a multiple of batch.micro {config.batch.micro} times "
            f"{world.size} processes",
            field="batch.sequences",
        )
    tokenizer = Tokenizer.load(config.corpus.tokenizer)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size {config.model.vocab_size} is less than the tokenizer's {tokenizer.vocab_size}",
            field="model.vocab_size",
        )
    return tokenizer


def _pin(config: TrainConfig, tokenizer: Tokenizer, found: Found, allow_changed: Collection[str]) -> str:
    """The snapshot that the run uses, all through; "" without retrieval."""
    if config.retrieval is None:
        return ""
    wanted, m = _wanted_snapshot(config.retrieval.snapshot, found, allow_changed), config.model.chunk_length
    if config.retrieval.folder is not None:
        return snapshot_of(config.retrieval.folder, wanted, tokenizer, m)
    return pin_snapshot(config.retrieval, wanted, tokenizer, m)


def _source(
    config: TrainConfig, snapshot: str, corpus: ChunkedCorpus, held_out: ChunkedCorpus
) -> LiveSource | CachedSource | NoSource:
    if config.retrieval is None:
        return NoSource()
    settings, k = config.retrieval, config.model.num_neighbors
    if settings.cache is not None and settings.folder is not None:
        exclude = settings.exclude_own_document
        return CachedSource(settings.cache, settings.folder, k, [corpus, held_out], exclude_own=exclude)
    client = RetrieverClient(settings.address)
    client.hold(settings.database, snapshot)
    return LiveSource(client, settings, snapshot, k, config.model.chunk_length)


def _start(
    config: TrainConfig,
    corpus_digest: str,
    cache_digest: str,
    base_hash: str,
    snapshot: str,
    found: Found,
    allow_changed: Collection[str],
) -> checkpoint.RunState:
    """The state at the checkpoint to go on from, or before the first step. Raises ConfigError where it has other
    settings."""
    settings = checkpoint.settings_of(config, corpus_digest, cache_digest, base_hash)
    if found is None:
        return checkpoint.RunState(0, settings, snapshot)
    path, state = found
    changes = checkpoint.require_same(settings, state.settings, path, allow_changed)
    if snapshot != state.snapshot:
        changes.append({"field": checkpoint.SNAPSHOT_FIELD, "then": state.snapshot, "now": snapshot})
    made = tuple({"step": state.step, **change} for change in changes)
    return checkpoint.RunState(state.step, settings, snapshot, (*state.changes, *made))


def _with_dtype(config: TrainConfig, world: World, found: Found) -> TrainConfig:
    """The same settings with the dtype that is computed in, for all processes and all parts of the run."""
    resumed = None if found is None else found[1].settings
    dtype = world.from_first(lambda: compute_dtype(config.compute, world.device, resumed))
    compute = config.compute.model_copy(update={"dtype": dtype})
    return config.model_copy(update={"compute": compute})


def _metrics(config: TrainConfig, world: World, state: checkpoint.RunState) -> Metrics:
    events = config.out / "tensorboard" if config.tensorboard else None
    return Metrics(config.out / "metrics.jsonl", first=world.first, resumed_at=state.step, tensorboard=events)


def _wanted_snapshot(asked: str, found: Found, allow_changed: Collection[str]) -> str:
    """The snapshot of the run that is resumed, else the configured one ("" = live)."""
    if found is None:
        return asked
    path, state = found
    if asked and asked != state.snapshot and checkpoint.SNAPSHOT_FIELD in allow_changed:
        return asked
    if asked and asked != state.snapshot:
        raise ConfigError(
            f"{path} was trained with snapshot {state.snapshot}, retrieval.snapshot is {asked}; set it back, give "
            f"another `out` for a new run, or, where the change is meant, add --allow-changed {checkpoint.SNAPSHOT_FIELD}",
            field="retrieval.snapshot",
        )
    return state.snapshot


def _export(config: TrainConfig, weights: dict[str, Any], tokenizer: Tokenizer, name: str) -> str:
    """Write `out/NAME`, which `openbook_model.load` reads, from whole weights; their hash."""
    model = RetroModel(config.model)
    model.load_state_dict(weights)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        save_model(model, config.out / name, folder)
    return weights_hash(model)
