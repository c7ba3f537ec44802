"""What is read from a model folder, what its fingerprint depends on, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_encoders import DIMENSION, POSITIONS, edit_json, write_encoder, write_json

from openbook_core.errors import ArgumentError, ConfigError, InputError
from openbook_core.fingerprint import differences
from openbook_embedder.architecture import ARCHITECTURES
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine


def load(folder: Path, **options: Any) -> EncoderEngine:
    return EncoderEngine.load(folder, dtype="float32", options=EncoderOptions(**options))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoders") / "bert", "bert")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def changed(engine: EncoderEngine, other: EncoderEngine) -> set[str]:
    return {field for field, _, _ in differences(engine.fingerprint.record, other.fingerprint.record)}


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_positions_are_what_the_network_can_read(tmp_path: Path, model_type: str) -> None:
    """RoBERTa's and MPNet's tables have two rows that no token takes."""
    folder = write_encoder(tmp_path / "model", model_type)
    edit_json(folder / "tokenizer_config.json", model_max_length=1000)
    engine = load(folder)
    assert engine.max_tokens == POSITIONS
    assert engine.encode(["word " * 200]).shape == (1, DIMENSION)


def test_one_model_stored_in_two_ways_has_one_fingerprint(original: Path, folder: Path) -> None:
    """Without defaults in config.json, with a prefix and an unused head in the weights, older pooling switches."""
    config = json.loads((folder / "config.json").read_text())
    for name in ("hidden_act", "layer_norm_eps", "type_vocab_size"):
        config.pop(name, None)
    write_json(folder / "config.json", config)
    weights = load_file(folder / "model.safetensors")
    kept = {f"bert.{name}": tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": DIMENSION, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
    )
    assert load(folder).fingerprint == load(original).fingerprint


def test_each_part_is_in_the_fingerprint(original: Path, folder: Path, tmp_path: Path) -> None:
    engine = load(original)
    assert changed(engine, load(original, normalize=False)) == {"normalisation"}
    assert changed(engine, load(original, query_prompt="q: ")) == {"prompts.query"}
    assert changed(engine, load(original, max_tokens=60)) == {"max_tokens"}
    edit_json(folder / "tokenizer_config.json", truncation_side="left")
    assert changed(engine, load(folder)) == {"tokenizer.truncation_side"}
    shutil.copy(original / "tokenizer_config.json", folder)
    edit_json(folder / "config.json", layer_norm_eps=1e-5)
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode="cls")
    assert changed(engine, load(folder)) == {"architecture.layer_norm_eps", "pooling"}
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "weights" in changed(engine, load(folder))


def test_scores_of_a_unigram_tokenizer_are_in_the_fingerprint(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", "xlm-roberta")
    before = load(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"][-1][1] -= 1e-6
    write_json(folder / "tokenizer.json", tokenizer)
    assert changed(before, load(folder)) == {"tokenizer.scores"}


def test_prompts_are_the_roles_own(folder: Path) -> None:
    prompts = {"query": "q: ", "document": "", "passage": "p: "}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "query"})
    assert load(folder).fingerprint.record["prompts"] == {"query": "q: ", "passage": "p: "}
    write_json(
        folder / "config_sentence_transformers.json", {"prompts": {"query": "q: "}, "default_prompt_name": "query"}
    )
    assert load(folder).fingerprint.record["prompts"] == {"query": "q: ", "passage": ""}


def test_vectors_without_length_one_are_logged(original: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(original, normalize=False)
    assert "not scaled to length one" in caplog.text


TRANSFORMER, POOLING, NORMALIZE = (
    {"type": f"sentence_transformers.models.{kind}", "path": path}
    for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
)
DENSE = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
CUSTOM = {"type": "custom_code.Transformer", "path": ""}
POOLING_FILE, PROMPTS_FILE = "1_Pooling/config.json", "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("name", "content", "field", "message"),
    [
        ("modules.json", [TRANSFORMER, POOLING, DENSE], "model", "Transformer, Pooling, Dense; .* at most Normalize"),
        ("modules.json", [TRANSFORMER, NORMALIZE, POOLING], "model", "in this order"),
        ("modules.json", [CUSTOM, POOLING], "model", "custom_code.Transformer"),
        ("modules.json", [TRANSFORMER], "model", "at most Normalize"),
        ("modules.json", [TRANSFORMER, {**POOLING, "path": "../x"}], "model", "outside the model's folder"),
        ("modules.json", [TRANSFORMER, {**POOLING, "path": "9_Pooling"}], "model", "there is no .*9_Pooling"),
        ("modules.json", {"0": "Transformer"}, "model", "must hold a list"),
        (POOLING_FILE, {"pooling_mode": "max"}, "pooling", "pools by max; one of mean, cls, lasttoken is served"),
        (POOLING_FILE, {"pooling_mode": ["cls", "mean"]}, "pooling", "by cls and mean"),
        (POOLING_FILE, {"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "pooling", "contradicts itself"),
        (POOLING_FILE, {"pooling_mode": "mean", "embedding_dimension": 48}, "model", "48 elements.* makes 32"),
        (PROMPTS_FILE, {"prompts": {"document": "a", "passage": "b"}}, "model", "several prompts for a passage"),
        (PROMPTS_FILE, {"prompts": {}, "default_prompt_name": "x"}, "model", "'x' is not among the prompts"),
        (PROMPTS_FILE, [], "model", "must hold an object, not list"),
        (PROMPTS_FILE, {"prompts": ["query: "]}, "model", "must be an object of texts"),
        ("sentence_bert_config.json", {"max_seq_length": "many"}, "model", "max_seq_length is 'many'"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "model", "max_seq_length is 0"),
        ("tokenizer_config.json", {"truncation_side": "both"}, "tokenizer", "'both'; left or right"),
        ("sentence_bert_config.json", {"query_length": 32}, "model", "asks for query_length"),
    ],
)
def test_files_that_are_refused(folder: Path, name: str, content: Any, field: str, message: str) -> None:
    write_json(folder / name, content)
    with pytest.raises(InputError, match=message) as refused:
        load(folder)
    assert refused.value.field == field


def test_a_prompt_outside_of_the_pooling_is_refused(folder: Path) -> None:
    edit_json(folder / POOLING_FILE, include_prompt=False)
    assert load(folder).dimension == DIMENSION
    edit_json(folder / PROMPTS_FILE, prompts={"query": "q: "})
    with pytest.raises(InputError, match="include_prompt is false"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "'llama'.*: bert, distilbert, modernbert, mpnet, roberta, xlm-roberta"),
        ({"model_type": None}, "of type None"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "code of its own"),
        ({"is_decoder": True}, "is a decoder"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'"),
        ({"num_hidden_layers": "many"}, "config.json does not load"),
        ({"num_hidden_layers": 3}, "lack 16 tensors"),
        ({"intermediate_size": 64}, "do not load"),
    ],
)
def test_networks_that_are_refused(folder: Path, config: dict[str, Any], message: str) -> None:
    edit_json(folder / "config.json", **config)
    with pytest.raises(InputError, match=message) as refused:
        load(folder)
    assert refused.value.field == "model"


def test_weights_that_are_not_an_encoder(folder: Path) -> None:
    import torch

    save_file({"wte.weight": torch.zeros(4, 4)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="another model's weights") as refused:
        load(folder)
    assert refused.value.field == "model"
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="do not load"):
        load(folder)


def test_weights_in_a_pickle_alone_say_how_to_convert_them(folder: Path, original: Path) -> None:
    import torch

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert load(folder).fingerprint == load(original).fingerprint
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pytorch_model.bin only, a pickle.*convert it once: python -c") as refused:
        load(folder)
    assert refused.value.field == "model"
    exec(refused.value.message.split('"')[1])  # the command that it names
    assert load(folder).fingerprint == load(original).fingerprint


def test_a_folder_without_tokenizer_says_how_to_make_one(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer.json.*save_pretrained") as refused:
        load(folder)
    assert refused.value.field == "tokenizer"


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][:100].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", vocab_size=100)
    with pytest.raises(InputError, match="not of one model"):
        load(folder)


def test_options_against_the_folder(original: Path, tmp_path: Path) -> None:
    for options, field, message in (
        ({"pooling": "cls"}, "pooling", "given 'cls', .* says 'mean'"),
        ({"max_tokens": 65}, "max_tokens", "given 65, the network has 64 positions"),
        ({"max_tokens": 2}, "max_tokens", "leaves no room for text"),
        ({"query_prompt": "word " * 64}, "max_tokens", "prompt of a query"),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            load(original, **options)
        assert refused.value.field == field
    assert load(original, pooling="mean").max_tokens == POSITIONS
    plain = write_encoder(tmp_path / "plain", "bert", pooling=None)
    with pytest.raises(ConfigError, match=r"no modules.json.*mean \(BERT as in RETRO\), cls or last") as refused:
        load(plain)
    assert refused.value.field == "pooling"
    assert load(plain, pooling="cls").fingerprint.record["normalisation"] == "l2"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "0 token ids, the encoder reads 1 to 64"),
        ([1] * 65, "65 token ids"),
        ([1, -1], "token id -1 is out of range, this encoder's are 0 to"),
        ([1, 10**6, 2], "token id 1000000"),
    ],
)
def test_token_ids_that_the_encoder_lacks(original: Path, row: list[int], message: str) -> None:
    engine = load(original)
    engine.check_ids([1, 2, 3], field="token_ids[0]")
    with pytest.raises(ArgumentError, match=message) as refused:
        engine.check_ids(row, field="token_ids[1]")
    assert refused.value.field == "token_ids[1]"
