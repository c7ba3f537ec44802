"""Instruction tuning: packing, adapters, resume; on real small networks."""

import json

import pytest
import torch

from openbook_core.errors import ConfigError, InputError, MismatchError, NotFoundError
from openbook_core.tokenizer import Tokenizer
from openbook_core.weights import DEFAULT_MODEL
from openbook_model import EncoderConfig, RetroConfig, RetroModel, initialise, load, save
from openbook_model.adapter import merge_adapter, save_adapter
from openbook_model.checkpoint import read_prompt
from openbook_prompt.chat import ChatFormat
from openbook_prompt.recipe import Message
from openbook_prompt.settings import PromptSettings
from openbook_trainer.sft.config import LoraSettings, SftConfig
from openbook_trainer.sft.lora import adapter_pairs, inject, projections
from openbook_trainer.sft.packing import Encoded, encode_example, pack
from openbook_trainer.sft.readers import Example
from openbook_trainer.sft.run import packed_loss, run_sft


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(DEFAULT_MODEL)


@pytest.fixture
def network(tokenizer):
    config = RetroConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        ffn_hidden_size=64,
        max_positions=512,
        cross_attention_layers=(2,),
        gate=0.0,
        encoder=EncoderConfig(num_layers=1, hidden_size=32, num_heads=2, ffn_hidden_size=64),
    )
    model = RetroModel(config)
    initialise(model, 0)
    return model


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_only_the_answer_and_the_end_token_are_learnt(tokenizer):
    example = Example("Who is the king of Chad?", "Ada LOVELACE")
    form, settings = ChatFormat(tokenizer), PromptSettings()
    encoded = encode_example(form, tokenizer, example, ["Chad: king: Ada LOVELACE"], settings, 256)
    learnt = [label for label in encoded.labels if label != -100]
    assert tokenizer.decode(learnt[:-1]) == " Ada LOVELACE" and learnt[-1] == tokenizer.eos_id
    assert encoded.ids[-len(learnt) :] == learnt and len(encoded.ids) == len(encoded.labels)
    assert "The king of Chad is Ada LOVELACE" in tokenizer.decode(encoded.ids)
    with pytest.raises(InputError, match="raise row_tokens"):
        encode_example(form, tokenizer, example, [], settings, 20)


def test_earlier_turns_stand_before_the_question_as_in_serving(tokenizer):
    turns = (("system", "You are a poet."), ("user", "A word, please."), ("assistant", "Sea."))
    form = ChatFormat(tokenizer)
    encoded = encode_example(form, tokenizer, Example("Another?", "Sky.", turns=turns), [], PromptSettings(), 256)
    messages = [Message(role, text) for role, text in (*turns, ("user", "Another?"))]
    prompt = form.encode_chat(messages).ids
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.labels[: len(prompt) - 1] == [-100] * (len(prompt) - 1)
    assert tokenizer.decode(encoded.ids[len(prompt) : -1]) == "Sky."


def test_packed_examples_have_the_loss_of_separate_ones(network):
    draw = torch.Generator().manual_seed(0)
    examples = []
    for length in (40, 17, 29, 64):
        ids = torch.randint(0, 1000, (length,), generator=draw).tolist()
        examples.append(Encoded(ids, [*[-100] * (length - 6), *ids[length - 5 :], -100], length - 5))
    packed = pack(examples, 100)
    assert packed.ids_BT.shape[0] == 2
    with torch.no_grad():
        separate = sum(float(packed_loss(network, pack([each], 100))) for each in examples)
        assert float(packed_loss(network, packed)) == pytest.approx(separate, rel=1e-5)


def test_the_adapter_is_on_the_decoder_s_projections_alone(network):
    wanted = set(projections(network))
    inject(network, LoraSettings(rank=2, alpha=4))
    assert set(adapter_pairs(network)) == wanted
    assert len(wanted) == 4 * network.config.num_layers
    assert any(f"encoder.{name}.weight" in dict(network.named_parameters()) for name in wanted), "endings are ambiguous"


def test_an_adapter_is_merged_as_it_was_trained(network, tmp_path):
    ids = torch.arange(1, 20)[None]
    folder = tmp_path / "adapter"
    bare = {name: each.detach().clone() for name, each in network.state_dict().items()}
    torch.manual_seed(0)
    inject(network, LoraSettings(rank=4, alpha=8))
    for down, up in adapter_pairs(network).values():
        for each in (down, up):
            each.data = (torch.randn_like(each) * 0.2).bfloat16().float()
    with torch.no_grad():
        tuned = network(ids)
    save_adapter(folder, adapter_pairs(network), 4, 8, "base", {"extracts": 2})
    other = RetroModel(network.config)
    other.load_state_dict(bare)
    with torch.no_grad():
        before = other(ids)
        merge_adapter(other, folder)
        torch.testing.assert_close(other(ids), tuned, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, tuned, atol=1e-2)
    assert read_prompt(folder) == {"extracts": 2}
    wider = RetroModel(network.config.model_copy(update={"ffn_hidden_size": 96}))
    with pytest.raises(MismatchError, match="another model"):
        merge_adapter(wider, folder)
    with pytest.raises(NotFoundError, match=r"adapter_config\.json is missing"):
        merge_adapter(other, tmp_path)


def test_a_resumed_run_ends_where_an_unbroken_one_does(network, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    save(network, tmp_path / "model", tmp_path / "tokenizer")
    lines = [json.dumps({"question": f"What is {n}?", "answer": f"number {n}"}) for n in range(9)]
    write(tmp_path / "rows.jsonl", "\n".join(lines))
    blend = f"datasets:\n- {{path: {tmp_path}/rows.jsonl, format: pairs, weight: 1}}\n"
    common = {
        "task": "sft",
        "model": str(tmp_path / "model"),
        "blend": write(tmp_path / "blend.yaml", blend),
        "steps": 4,
        "examples": 3,
        "lora": LoraSettings(rank=2, alpha=4),
    }
    whole = run_sft(SftConfig(out=tmp_path / "whole", **common))
    run_sft(SftConfig(out=tmp_path / "parts", stop_at=2, **common))
    parts = run_sft(SftConfig(out=tmp_path / "parts", **common))
    names = ("adapter_model.safetensors", "adapter_config.json")
    for name in names:
        assert (tmp_path / "whole/adapter" / name).read_bytes() == (tmp_path / "parts/adapter" / name).read_bytes()
    assert whole["steps"] == parts["steps"] == 4
    assert [json.loads(line)["step"] for line in (tmp_path / "parts/metrics.jsonl").open()] == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="examples: now 2, then 3"):
        run_sft(SftConfig(out=tmp_path / "parts", **(common | {"examples": 2})))
    full = run_sft(SftConfig(out=tmp_path / "full", **(common | {"steps": 1, "lora": None})))
    assert isinstance(load(tmp_path / "full/model", torch.float32), RetroModel) and full["steps"] == 1
