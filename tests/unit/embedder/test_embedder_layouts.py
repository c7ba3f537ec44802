"""Folders laid out as BGE, E5 and GTE are published, with tiny weights, against sentence-transformers; BERT's own sizes."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_encoders import DIMENSION, POSITIONS, TEXTS, edit_json, write_encoder, write_json

from openbook_core.probes import lowest_cosine
from openbook_embedder.architecture import Architecture
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
# The switches that releases of that time write.
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
LATER_MODES = ("weightedmean_tokens", "lasttoken")


def write_layout(
    folder: Path,
    model_type: str,
    pooling: str,
    *,
    normalize: bool = True,
    later: bool = False,
    lower_case: bool = False,
    prompts: dict[str, str] | None = None,
    tokenizer_of: str | None = None,
) -> Path:
    write_encoder(folder, model_type, pooling=None, tokenizer_of=tokenizer_of)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": "" if place == 0 else f"{place}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, kind in enumerate(kinds)
    ]
    modes = (*MODES, *LATER_MODES) if later else MODES
    switches: dict[str, Any] = {"word_embedding_dimension": DIMENSION}
    switches |= {f"pooling_mode_{mode}": mode == pooling for mode in modes}
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", switches | ({"include_prompt": True} if later else {}))
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": lower_case})
    if prompts is not None:
        versions = {"sentence_transformers": "2.2.2", "transformers": "4.28.1", "pytorch": "1.13.0+cu117"}
        content: dict[str, Any] = {"__version__": versions}
        write_json(folder / "config_sentence_transformers.json", content | ({"prompts": prompts} if prompts else {}))
    return folder


LAYOUTS: dict[str, dict[str, Any]] = {
    "bge-small-en-v1.5": {"model_type": "bert", "pooling": "cls_token", "lower_case": True, "prompts": {}},
    "bge-m3": {"model_type": "xlm-roberta", "pooling": "cls_token", "prompts": {}},
    "e5-base-v2": {"model_type": "bert", "pooling": "mean_tokens"},
    "multilingual-e5-base": {"model_type": "xlm-roberta", "pooling": "mean_tokens"},
    "multilingual-e5-small": {"model_type": "bert", "pooling": "mean_tokens", "tokenizer_of": "xlm-roberta"},
    "gte-base": {"model_type": "bert", "pooling": "mean_tokens"},
    "gte-modernbert-base": {"model_type": "modernbert", "pooling": "cls_token", "normalize": False, "later": True},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout(tmp_path: Path, name: str) -> None:
    folder = write_layout(tmp_path / name, **LAYOUTS[name])
    if name == "gte-base":  # its weights are stored in half precision, with the ids of positions beside them
        weights = {key: tensor.half() for key, tensor in load_file(folder / "model.safetensors").items()}
        weights["embeddings.position_ids"] = torch.arange(POSITIONS)[None]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        edit_json(folder / "config.json", torch_dtype="float16")
    if name == "multilingual-e5-small":  # BERT's padding id beside a tokenizer that has another
        edit_json(folder / "config.json", pad_token_id=0)
    prompts = {"query": "query: ", "passage": "passage: "} if "e5" in name else {"query": "", "passage": ""}
    options = EncoderOptions(query_prompt=prompts["query"], passage_prompt=prompts["passage"])
    engine = EncoderEngine.load(folder, dtype="float32", options=options)
    assert engine.max_tokens == 48
    assert engine.fingerprint.record["pooling"] == ("cls" if "cls" in LAYOUTS[name]["pooling"] else "mean")
    library = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    for role, encode in (("passage", engine.encode), ("query", engine.encode_queries)):
        wanted_ND = np.asarray(
            library.encode(list(TEXTS), prompt=prompts[role] or None, normalize_embeddings=True), dtype=np.float32
        )
        assert lowest_cosine(encode(TEXTS), wanted_ND) >= 0.99999
    lengths_N = np.linalg.norm(engine.encode(TEXTS[:9]), axis=1)
    assert np.allclose(lengths_N, 1, atol=1e-5) == LAYOUTS[name].get("normalize", True)


def test_berts_weights_as_they_were_published(tmp_path: Path) -> None:
    """Under `bert.`, layer norms with gamma and beta, the heads of pretraining beside them, no files of sentence-transformers."""
    plain = write_encoder(tmp_path / "plain", "bert", pooling=None)
    published = Path(shutil.copytree(plain, tmp_path / "published"))
    weights = {
        "bert." + key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for key, tensor in load_file(plain / "model.safetensors").items()
    }
    assert sum("gamma" in key for key in weights) == 5
    vocabulary = len(weights["bert.embeddings.word_embeddings.weight"])
    weights |= {
        "cls.predictions.bias": torch.ones(vocabulary),
        "cls.predictions.transform.LayerNorm.gamma": torch.ones(DIMENSION),
        "cls.seq_relationship.weight": torch.ones(2, DIMENSION),
    }
    save_file(weights, published / "model.safetensors", metadata={"format": "pt"})
    edit_json(published / "config.json", architectures=["BertForMaskedLM"])
    expected, found = (
        EncoderEngine.load(folder, dtype="float32", options=EncoderOptions(pooling="mean"))
        for folder in (plain, published)
    )
    assert np.array_equal(expected.encode(TEXTS), found.encode(TEXTS))
    assert expected.fingerprint == found.fingerprint


@pytest.mark.parametrize(("name", "dimension"), [("bert-base", 768), ("bert-large", 1024)])
def test_bert_as_retro_had_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dimension: int) -> None:
    """Its sizes without its weights; the operations that the benchmark counts are those that torch counts."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("embedder_gpu")
    config = BertConfig(vocab_size=30522, attn_implementation="eager", **gpu.GEOMETRIES[name])
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": ["BertForMaskedLM"]}))
    architecture = Architecture.read(tmp_path)
    assert (architecture.dimension, architecture.positions, architecture.pad_id) == (dimension, 512, 0)
    with torch.device("meta"):
        network = BertModel(config, add_pooling_layer=False)
        ids_NT = torch.zeros((3, gpu.TOKENS), dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            hidden_NTD = network(input_ids=ids_NT).last_hidden_state
    assert hidden_NTD.shape == (3, gpu.TOKENS, dimension)
    assert counter.get_total_flops() == 3 * gpu._operations(**gpu.GEOMETRIES[name])
