"""Loading: a folder of ours is served as it is, a Hugging Face folder is converted once and then reused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from generator_fakes import VOCABULARY, byte_tokenizer, tiny_model

from openbook_core.errors import CorruptError, InputError, OpenbookError
from openbook_generator.config import GeneratorConfig
from openbook_generator.models import load_model, with_stored_prompt
from openbook_model import cross_attention_state, save, weights_hash
from openbook_prompt.chat import stop_ids
from openbook_prompt.settings import PromptSettings


def test_our_own_folder_is_served_as_it_is(tmp_path: Path) -> None:
    byte_tokenizer().save(tmp_path / "tokenizer")
    save(tiny_model(), tmp_path / "model", tmp_path / "tokenizer")
    model, tokenizer = load_model(GeneratorConfig(model=str(tmp_path / "model"), dtype="float32"))
    assert weights_hash(model) == weights_hash(tiny_model())
    assert tokenizer.fingerprint == byte_tokenizer().fingerprint


def test_another_folder_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setenv("OPENBOOK_CACHE", str(tmp_path / "cache"))
    settings = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4
    )
    twin = LlamaForCausalLM(settings).eval()
    twin.save_pretrained(tmp_path / "twin")
    byte_tokenizer().save(tmp_path / "twin")
    config = GeneratorConfig(model=str(tmp_path / "twin"), dtype="float32")
    model, _ = load_model(config)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids), twin(ids).logits, rtol=1e-4, atol=1e-5)
    assert cross_attention_state(model) == "off (gate 0)"
    (converted,) = (tmp_path / "cache").rglob("model.safetensors")
    written = converted.stat().st_mtime_ns
    load_model(config)
    assert converted.stat().st_mtime_ns == written
    changes = {"CONVERSION_VERSION": 99, "FORMAT_VERSION": 99, "version": lambda name: "another"}
    for number, (name, value) in enumerate(changes.items(), start=2):
        with monkeypatch.context() as another_release:
            another_release.setattr(f"openbook_model.resolve.{name}", value)
            load_model(config)
        assert len(list((tmp_path / "cache").rglob("model.safetensors"))) == number


def test_an_unknown_model_names_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBOOK_WEIGHTS", "package")
    with pytest.raises(OpenbookError, match="no-such-model"):
        load_model(GeneratorConfig(model="no-such-model"))


def test_end_markers_stop_the_reply() -> None:
    tokenizer = byte_tokenizer()
    assert stop_ids(tokenizer) == {tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|endoftext|>")}


def test_an_adapter_brings_its_prompt_and_what_is_set_goes_before_it(tmp_path: Path) -> None:
    (tmp_path / "prompt.json").write_text(PromptSettings(extracts=3, instruction="Name it.").model_dump_json())
    asked = GeneratorConfig(adapter=tmp_path, prompt=PromptSettings(extracts=2))
    assert with_stored_prompt(asked).prompt == PromptSettings(extracts=2, instruction="Name it.")
    assert with_stored_prompt(GeneratorConfig()) == GeneratorConfig()
    for damaged, error in (('{"extract": 3}', InputError), ("{", CorruptError), ("[1]", CorruptError)):
        (tmp_path / "prompt.json").write_text(damaged)
        with pytest.raises(error, match=str(tmp_path)):
            with_stored_prompt(asked)
