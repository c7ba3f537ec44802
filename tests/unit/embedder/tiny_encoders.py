"""Model folders with small random encoders of each served type, in the layout of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from openbook_core.probes import PROBE_TEXTS

DIMENSION, POSITIONS = 32, 64
ODD_TEXTS = (
    " ",
    "\n\t\r\n",
    "x\u0000y\ufffd\ufeff\u200bz",
    "e\u0301 \u0301 \u1112\u1161\u11ab I\u0307stanbul \u0130",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1e6 \ud7ff\U0010fffd",
    "[CLS] </s> <s> [PAD] <pad> are special tokens in the text",
    "\u202eright to left\u202c שלום",
    "a" * 300,
)
# Enough distinct ones to compare the 10 nearest.
EFFECT_TEXTS = tuple(f"{text} ({edition})" for edition in range(4) for text in PROBE_TEXTS[:25])
TEXTS = (*PROBE_TEXTS, *ODD_TEXTS, "government of the people " * 60)
_SIZES = {
    "hidden_size": DIMENSION,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
_DISTIL_SIZES = {"dim": DIMENSION, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": POSITIONS}
_SIZES_OF: dict[str, dict[str, Any]] = {
    "bert": _SIZES,
    "roberta": {**_SIZES, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
    "xlm-roberta": {**_SIZES, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
    "mpnet": {**_SIZES, "max_position_embeddings": POSITIONS + 2},
    "distilbert": _DISTIL_SIZES,
    "modernbert": {**_SIZES, "num_hidden_layers": 4, "local_attention": 16, "cls_token_id": 0, "sep_token_id": 2},
}

_TOKENIZER_CLASSES = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "mpnet": "MPNetTokenizer",
    "distilbert": "DistilBertTokenizer",
    "modernbert": "PreTrainedTokenizerFast",
}


def write_encoder(
    folder: Path,
    model_type: str,
    *,
    pooling: str | None = "mean",
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    tokenizer_of: str | None = None,
    **settings: Any,
) -> Path:
    """`pooling` by sentence-transformers' name, None for a folder without its files; `tokenizer_of` another model type;
    `settings` for the network."""
    folder.mkdir(parents=True)
    tokenizer = _tokenizer(tokenizer_of or model_type)
    tokenizer.save_pretrained(folder)
    edit_json(folder / "tokenizer_config.json", tokenizer_class=_TOKENIZER_CLASSES[tokenizer_of or model_type])
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **{**_SIZES_OF[model_type], **settings},
    )
    torch.manual_seed(0)
    network = AutoModel.from_config(config)
    with torch.no_grad():  # large enough that other texts give other vectors
        for name, parameter in network.named_parameters():
            parameter.normal_(0.0, 1.0 if "embeddings" in name else 0.3)
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    network.save_pretrained(folder)
    if pooling is not None:
        write_sentence_files(folder, pooling=pooling, normalize=normalize, prompts=prompts)
    return folder


def write_sentence_files(
    folder: Path, *, pooling: str, normalize: bool, prompts: Mapping[str, str] | None, **config: Any
) -> None:
    kinds = {"": "Transformer", "1_Pooling": "Pooling", **({"2_Normalize": "Normalize"} if normalize else {})}
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": DIMENSION, "pooling_mode": pooling})
    write_json(folder / "config_sentence_transformers.json", {"prompts": dict(prompts or {}), **config})


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_json(path: Path, **values: Any) -> None:
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **values})


def _tokenizer(model_type: str) -> PreTrainedTokenizerFast:
    """WordPiece, Unigram or byte-level BPE as models of this type have it, trained on the probe texts."""
    pad, cls, sep, unk, mask = (
        ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
        if model_type in ("bert", "distilbert")
        else ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
    )
    special = [cls, pad, sep, unk, mask]  # padding is 1, as in RoBERTa and MPNet
    if model_type in ("bert", "distilbert", "mpnet"):
        raw = Tokenizer(models.WordPiece(unk_token=unk))
        raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        raw.decoder, trainer = decoders.WordPiece(), trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    elif model_type == "xlm-roberta":
        raw = Tokenizer(models.Unigram())
        raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
        raw.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token=unk)
    else:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    raw.train_from_iterator(PROBE_TEXTS, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, special.index(cls)), (sep, special.index(sep))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=pad,
        cls_token=cls,
        sep_token=sep,
        unk_token=unk,
        mask_token=mask,
        model_max_length=POSITIONS,
    )
