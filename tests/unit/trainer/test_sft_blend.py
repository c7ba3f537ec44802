"""Blends: weights, lengths, and the shipped recipes."""

import gzip
import json
import math
import os
from pathlib import Path

import pytest

from openbook_core.config import load_config
from openbook_core.errors import ConfigError, InputError
from openbook_core.tokenizer import Tokenizer
from openbook_core.weights import DEFAULT_MODEL
from openbook_model import RetroConfig, RetroModel, initialise, save
from openbook_prompt.chat import ChatFormat
from openbook_prompt.settings import PromptSettings
from openbook_trainer.sft.batches import Batches
from openbook_trainer.sft.blend import load_blend, read_examples
from openbook_trainer.sft.config import SftConfig
from openbook_trainer.sft.packing import encode_example
from openbook_trainer.sft.run import run_sft

ROOT = Path(__file__).parents[3]
RUNS = sorted((ROOT / "examples/train").glob("*-sft.yaml"))
BLENDS = sorted((ROOT / "examples/train/blends").glob("*.yaml"))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_weights_must_sum_to_one_and_formats_and_options_be_known(tmp_path):
    text = "datasets:\n- {{path: a, format: {}, weight: {}, options: {{{}}}}}\n"
    with pytest.raises(ConfigError, match=r"sum to 0\.5, not to 1"):
        load_blend(write(tmp_path / "a.yaml", text.format("pairs", 0.5, "")))
    with pytest.raises(ConfigError, match="unknown format 'csv'; known are factbook, flan, glossary"):
        load_blend(write(tmp_path / "b.yaml", text.format("csv", 1, "")))
    with pytest.raises(ConfigError, match="datasets.*unknown option 'step'; this format has steps"):
        load_blend(write(tmp_path / "c.yaml", text.format("flan", 1, "step: without")))


def test_examples_of_other_lengths_are_left_out(tmp_path):
    rows = [{"question": "q" * asked, "answer": "a" * answered} for asked, answered in ((5, 1), (5, 4), (50, 4))]
    path = write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def read(more):
        blend = f"datasets:\n- {{path: {path}, format: pairs, weight: 1, {more}}}\n"
        (examples,) = read_examples(load_blend(write(tmp_path / "blend.yaml", blend)))
        return [(len(each.question), len(each.answer), each.passages) for each in examples]

    assert read("retrieve: true") == [(5, 1, None), (5, 4, None), (50, 4, None)]
    assert read("max_characters: 9, retrieve: false") == [(5, 1, ()), (5, 4, ())]
    assert read("answer_characters: [2, 9]") == [(5, 4, None), (50, 4, None)]
    with pytest.raises(InputError, match="none of its 3 examples has the lengths asked for"):
        read("max_characters: 3")


@pytest.mark.parametrize("path", BLENDS, ids=lambda path: path.stem)
def test_the_shipped_blends_load(path):
    blend = load_blend(path)
    assert math.isclose(sum(each.weight for each in blend.datasets), 1)
    assert not [each.path for each in blend.datasets if "user_oriented" in each.path]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_shipped_runs_load(path):
    config, _ = load_config(SftConfig, path)
    assert load_blend(ROOT / config.blend).datasets


def test_nvidias_blend_has_its_weights_and_reads_rows_of_its_sets(tmp_path, monkeypatch):
    def reply(text, **more):
        return {"role": "assistant", "text": text, "lang": "en", "rank": 0, "replies": [], **more}

    trees = [
        {"prompt": {"role": "prompter", "text": f"{text}?", "lang": "en", "replies": [reply(text)]}}
        for text in ("Plain", "```code```")
    ]
    rows = {
        "soda.jsonl": [{"narrative": "n", "dialogue": ["Hi", "Ho"], "speakers": ["A", "B"]}],
        "eli5.jsonl": [{"q_id": "1", "title": "Why?", "selftext": "", "answers": {"text": ["So."], "score": [3]}}],
        "self_instruct.jsonl": [{"prompt": "p", "completion": "c" * length} for length in (300, 301)],
        "unnatural_instructions.jsonl": [{"instruction": "i", "instances": [{"input": "j", "output": "o"}]}],
        "databricks-dolly-15k.jsonl": [{"instruction": "i", "context": "", "response": "r", "category": "open_qa"}],
        "oasst.trees.jsonl.gz": trees,
    }
    for name, content in rows.items():
        data = "".join(json.dumps(row) + "\n" for row in content).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    write(tmp_path / "flan_cot.tsv", "q\ta\tc\n")
    monkeypatch.setenv("OPENBOOK_OPEN_BLEND", str(tmp_path))
    blend = load_blend(ROOT / "examples/train/blends/nvidia-open.yaml")
    assert [each.weight for each in blend.datasets] == [0.02, 0.02, 0.01, 0.02, 0.02, 0.01, 0.05, 0.817, 0.033]
    answers = [[each.answer for each in examples] for examples in read_examples(blend)]
    assert answers == [["Ho"], ["So."], ["c" * 300], ["c" * 301], ["o"], ["c\na"], ["r"], ["Plain"], ["```code```"]]
    config, _ = load_config(SftConfig, ROOT / "examples/train/nvidia-open-sft.yaml")
    (tmp_path / "eli5.jsonl").open("a").write(
        json.dumps({"title": "Long?", "answers": {"text": ["so " * 5000]}}) + "\n"
    )
    (tmp_path / "databricks-dolly-15k.jsonl").write_text(
        json.dumps({"instruction": "Sum up.", "context": "A long text.", "response": "Not its words."}) + "\n"
    )
    model = RetroModel(RetroConfig(vocab_size=49152, hidden_size=16, num_layers=1, num_heads=2, max_positions=4096))
    changes = {"blend": ROOT / config.blend, "examples": 40}
    batch = Batches(config.model_copy(update=changes), model, Tokenizer.load(DEFAULT_MODEL)).at(0)
    assert (batch.examples, batch.left_out) == (40, 0)


# At least so many examples in each set of blends/instruct.yaml.
COUNTS = {
    "t0_50k_open.jsonl.zst": 21000,
    "dev-v1.1.json.zst": 5000,
    "glossary_qa.jsonl.zst": 12000,
    "dolly_no_context.jsonl.zst": 4600,
    "basic_instructions.json.zst": 1100,
    "self_instruct_seed_tasks.jsonl.zst": 170,
    "gsm8k_train.jsonl.zst": 7400,
    "flan_cot_aqua_train.tsv.zst": 2700,
    "flan_cot_creak_train.tsv.zst": 6900,
    "flan_cot_ecqa_train.tsv.zst": 7100,
    "flan_cot_qasc_train.tsv.zst": 1000,
    "flan_cot_sensemaking_train.tsv.zst": 6000,
    "flan_cot_strategyqa_train.tsv.zst": 2000,
}


def test_the_instruct_blend_is_whole_and_fits_its_rows():
    if not os.environ.get("OPENBOOK_DATA"):
        pytest.skip("OPENBOOK_DATA is not set to a folder with instruct/, squad/ and openstax/ (not shipped)")
    config, _ = load_config(SftConfig, ROOT / "examples/train/instruct-sft.yaml")
    blend = load_blend(ROOT / config.blend)
    tokenizer = Tokenizer.load(DEFAULT_MODEL)
    form = ChatFormat(tokenizer)
    found = {}
    for data, examples in zip(blend.datasets, read_examples(blend), strict=True):
        found[Path(data.path).name] = len(examples)
        assert all(each.question and each.answer and each.passages is not None for each in examples), data.path
        # One token is at least one byte, so the longest in bytes are those that could be too long.
        examples.sort(key=lambda each: -len((each.question + each.answer).encode()))
        for each in examples[:40]:
            encode_example(form, tokenizer, each, each.passages, PromptSettings(), config.row_tokens)
    assert found.keys() == COUNTS.keys()
    assert all(found[name] >= least for name, least in COUNTS.items()), found


def test_the_instruct_recipe_takes_steps(tmp_path, monkeypatch):
    if not os.environ.get("OPENBOOK_DATA"):
        pytest.skip("OPENBOOK_DATA is not set to a folder with instruct/, squad/ and openstax/ (not shipped)")
    tokenizer = Tokenizer.load(DEFAULT_MODEL)
    tokenizer.save(tmp_path / "tokenizer")
    tiny = {"vocab_size": tokenizer.vocab_size, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    tiny |= {"max_positions": 1024, "cross_attention_layers": ()}
    model = RetroModel(RetroConfig.parse(tiny))
    initialise(model, 1)
    save(model, tmp_path / "model", tmp_path / "tokenizer")
    monkeypatch.chdir(ROOT)  # the recipe names its blend from here
    small = [f"model={tmp_path / 'model'}", f"out={tmp_path / 'run'}", "steps=2", "optimiser.warmup_steps=1"]
    config, _ = load_config(SftConfig, ROOT / "examples/train/instruct-sft.yaml", small)
    summary = run_sft(config)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (summary["steps"], summary["examples"], summary["left_out"]) == (2, 2 * config.examples, 0)
    # A random model knows nothing: the loss is that of all tokens alike.
    assert all(abs(each["loss"] - math.log(tokenizer.vocab_size)) < 0.5 for each in steps if "loss" in each)
    assert (Path(summary["written"]) / "adapter_model.safetensors").is_file()
