"""A small byte-pair tokenizer of one's own: single digits, and a marker that ends an answer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer

END = "<|end|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Of at most `vocab_size` tokens. The same texts in the same order give the same tokenizer.

    Raises InputError where the bytes and the marker alone are more.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size <= len(alphabet):
        raise InputError(f"vocab_size: {vocab_size} tokens do not hold the 256 bytes and {END}", field="vocab_size")
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    return Tokenizer(raw, eos_token=END)


class Words:
    """Encodes as a tokenizer of `train_tokenizer` does, whose tokens reach across no blank, and remembers the words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._word = lru_cache(1 << 16)(lambda word: tuple(tokenizer.encode(word).tolist()))

    def __call__(self, text: str) -> list[int]:
        first, *rest = text.split(" ")
        ids = list(self._word(first))
        for word in rest:
            ids += self._word(f" {word}")
        return ids


def end_of(tokenizer: Tokenizer) -> int:
    """The id of the token that ends an answer; raises InputError for a tokenizer without an end."""
    if tokenizer.eos_id is None:
        raise InputError("the tokenizer names no eos_token, so an answer has no end", field="tokenizer")
    return tokenizer.eos_id
