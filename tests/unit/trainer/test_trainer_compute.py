"""bfloat16, checkpointed and compiled blocks against the plain float32 run; steps that are not finite."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trainer_fakes import FakeRetriever, byte_tokenizer, settings, write_corpus

from openbook_core.errors import OpenbookError
from openbook_model import RetroModel, initialise, load
from openbook_model.precision import PrecisionProbe
from openbook_trainer import app, compute, loop, neighbours
from openbook_trainer.compute import prepare_blocks
from openbook_trainer.config import BatchConfig, ComputeConfig, TrainConfig
from openbook_trainer.data import ChunkedCorpus, SequenceOrder
from openbook_trainer.evaluation import summed_loss
from openbook_trainer.neighbours import Neighbors

CPU = torch.device("cpu")


def run(folder: Path, out: str = "run", **changes: Any) -> dict[str, Any]:
    return app.train(TrainConfig.parse(settings(folder, out=str(folder / out), **changes)))


def records(folder: Path, out: str = "run") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def model_of(folder: Path, **compute_settings: Any) -> RetroModel:
    model = RetroModel(TrainConfig.parse(settings(folder, model={"gate": 1.0})).model)
    initialise(model, 1)
    prepare_blocks(model, ComputeConfig(**compute_settings))
    return model


def gradients(model: RetroModel, work: tuple[Any, Neighbors]) -> dict[str, Tensor]:
    model.zero_grad()
    summed_loss(model, *work, CPU).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def varied_work(micro: int, count: int) -> list[tuple[Any, Neighbors]]:
    """Batches of all phases, of one document and of several, with neighbours of any length and none."""
    random = np.random.default_rng(2)
    lengths = (300, 7, 30, 300, 14, 90, 41, 3)
    documents = [(f"d{n}", random.integers(1, 250, length).astype(np.uint32)) for n, length in enumerate(lengths)]
    order = SequenceOrder(ChunkedCorpus(documents, byte_tokenizer(), 8), BatchConfig(chunks=4), seed=1)
    found = []
    for number in range(count):
        batch = order.samples(number * micro, micro)
        ids = random.integers(1, 250, (micro, 4, 2, 16))
        found.append((batch, Neighbors(ids, random.integers(0, 17, (micro, 4, 2)))))
    return found


@pytest.mark.parametrize("micro", [1, 3])
def test_compiled_blocks_are_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(compute.torch, "compile", partial(torch.compile, backend=backend))
    compiled, plain = model_of(tmp_path, compile=True), model_of(tmp_path)
    work = varied_work(micro, 24)
    alone = [batch.document_ids_BT is None for batch, _ in work]
    assert {batch.first_chunk for batch, _ in work} >= {work[0][0].first_chunk, work[1][0].first_chunk}
    kinds: set[bool] = set()
    for each, one_document in zip(work, alone, strict=True):
        before = len(graphs)
        found = gradients(compiled, each)
        # Causal attention and that to one's own document are two graphs, each made once.
        assert len(graphs) == before or one_document not in kinds
        kinds.add(one_document)
        for name, expected in gradients(plain, each).items():
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
    assert 0 < len(graphs) <= 8
    torch.compiler.reset()


def test_a_compiled_run_computes_the_same(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    monkeypatch.setattr(compute.torch, "compile", partial(torch.compile, backend="aot_eager"))
    losses = []
    for out, settings_of in (("plain", {}), ("compiled", {"compile": True, "checkpointing": True})):
        run(tmp_path, out, steps=2, compute=settings_of)
        losses.append([line["loss"] for line in records(tmp_path, out)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("conditioned", [True, False])
def test_checkpointing_changes_no_bit(tmp_path: Path, retriever: FakeRetriever, conditioned: bool) -> None:
    write_corpus(tmp_path)
    encoder = {"encoder": {"hidden_size": 16, "num_heads": 2, "num_layers": 2}}
    if not conditioned:
        encoder["encoder"]["conditioned"] = False
    hashes = {
        run(tmp_path, f"{kept}", steps=2, model=encoder, compute={"checkpointing": not kept})["weights_hash"]
        for kept in (True, False)
    }
    assert len(hashes) == 1


def test_checkpointing_keeps_only_what_goes_between_blocks(tmp_path: Path) -> None:
    (work,) = varied_work(2, 1)
    kept = []
    for checkpointing in (False, True):
        model = model_of(tmp_path, checkpointing=checkpointing)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved, own: set[int] = own) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            summed_loss(model, *work, CPU)
        kept.append(sum(saved.values()))
    assert kept[1] < 0.6 * kept[0]


def test_bfloat16_computes_and_float32_is_kept(tmp_path: Path, retriever: FakeRetriever) -> None:
    write_corpus(tmp_path)
    summaries = {name: run(tmp_path, name, compute={"dtype": name}) for name in ("float32", "bfloat16")}
    for key in ("loss_on", "loss_off"):
        one, two = (summary[key] for summary in summaries.values())
        assert one != two
        assert one == pytest.approx(two, rel=0.01)
    weights = dict(load(summaries["bfloat16"]["model"]).named_parameters())
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    rounded = [torch.equal(weight, weight.bfloat16().float()) for weight in weights.values() if weight.dim() > 1]
    assert not any(rounded)


def test_a_resumed_run_keeps_the_dtype_that_was_measured(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    automatic = {"dtype": "auto"}
    monkeypatch.setattr(compute, "probe_precision", lambda device: PrecisionProbe({}, torch.bfloat16))
    straight = run(tmp_path, "straight", compute=automatic)
    run(tmp_path, "halves", stop_at=2, compute=automatic)
    monkeypatch.setattr(compute, "probe_precision", lambda device: PrecisionProbe({}, torch.float32))
    resumed = run(tmp_path, "halves", compute=automatic)
    assert straight["dtype"] == resumed["dtype"] == "bfloat16"
    assert resumed["weights_hash"] == straight["weights_hash"]
    assert run(tmp_path, "anew", compute=automatic)["dtype"] == "float32"


class Bad:
    """The loss of some steps is not a number; `micro_batches` of them make a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float = float("nan")) -> None:
        self.steps, self.value, self.calls, self.real = steps, value, 0, loop.summed_loss
        monkeypatch.setattr(loop, "summed_loss", self)

    def __call__(self, *arguments: Any) -> Tensor:
        step, micro = divmod(self.calls, 2)
        self.calls += 1
        return self.real(*arguments) * (self.value if step + 1 in self.steps and micro == 1 else 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_is_skipped_and_counted(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    write_corpus(tmp_path)
    one = run(tmp_path, "one", stop_at=1)
    Bad(monkeypatch, {2}, value)
    two = run(tmp_path, "two", stop_at=2)
    assert (two["weights_hash"], two["steps"], two["skipped_steps"]) == (one["weights_hash"], 2, 1)
    assert [line["loss"] is None for line in records(tmp_path, "two")] == [False, True]
    assert [line["skipped_steps"] for line in records(tmp_path, "two")] == [0, 1]
    monkeypatch.undo()
    monkeypatch.setattr(app, "RetrieverClient", lambda address: retriever)
    monkeypatch.setattr(neighbours, "RetrieverClient", lambda address: retriever)
    assert run(tmp_path, "two")["weights_hash"] != one["weights_hash"]


def test_bad_steps_in_a_row_stop_the_run_with_a_checkpoint_that_resumes(
    tmp_path: Path, retriever: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    patience = {"max_bad_steps": 2}
    with monkeypatch.context() as patched:
        Bad(patched, {1, 3, 4})
        with pytest.raises(
            OpenbookError, match=r"step 4: .* 2 steps in a row.*step-00000004.* optimiser\.learning_rate"
        ):
            run(tmp_path, optimiser=patience, steps=6)
    assert [line["loss"] is None for line in records(tmp_path)] == [True, False, True, True]
    resumed = run(tmp_path, optimiser=patience, steps=6)
    assert (resumed["steps"], resumed["skipped_steps"]) == (6, 0)
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert all(line["loss"] for line in records(tmp_path)[4:])
