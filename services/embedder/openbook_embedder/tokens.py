"""Texts to the encoder's own token ids, cut to its limit. Runs on the caller's thread, not the encoder's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import normalizers

from openbook_core.errors import ConfigError, InputError
from openbook_core.fingerprint import canonical_json
from openbook_core.probes import PROBE_TEXTS
from openbook_core.tokenizer import Tokenizer
from openbook_embedder.folder import EncoderFolder


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of each text, special tokens included, and whether it was cut."""

    ids: list[list[int]]
    truncated: list[bool]

    @property
    def counts(self) -> list[int]:
        return [len(ids) for ids in self.ids]


class EncoderTokenizer:
    """The tokenizer.json of an encoder's folder; adds the role's prompt and the special tokens."""

    def __init__(self, folder: EncoderFolder) -> None:
        """Raises InputError for a tokenizer that is not the network's, ConfigError where no text would fit."""
        self._prompts = folder.prompts
        canonical = Tokenizer.load(folder.path).fingerprint.record
        self._raw = RawTokenizer.from_file(str(folder.path / "tokenizer.json"))
        self._raw.no_padding()
        self._raw.no_truncation()
        if folder.lower_case:
            existing = [self._raw.normalizer] if self._raw.normalizer else []
            self._raw.normalizer = normalizers.Sequence([normalizers.Lowercase(), *existing])
        self._check(folder)
        template = canonical_json([self._raw.encode(text).ids for text in PROBE_TEXTS])
        self.record: dict[str, Any] = {
            **canonical,
            **_unigram_scores(self._raw),
            **({"truncation_side": "left"} if folder.cut_side == "left" else {}),
            "template": hashlib.sha256(template.encode()).hexdigest(),
        }
        self._raw.enable_truncation(folder.max_tokens, direction=folder.cut_side)

    def _check(self, folder: EncoderFolder) -> None:
        largest = max(self._raw.get_vocab(with_added_tokens=True).values())
        if largest >= folder.architecture.vocab_size:
            raise InputError(
                f"{folder.path}: the tokenizer gives ids up to {largest}, the encoder knows "
                f"{folder.architecture.vocab_size}; tokenizer and weights are not of one model",
                field="model",
            )
        for role, prompt in self._prompts.items():
            taken = len(self._raw.encode(prompt).ids)
            if taken >= folder.max_tokens:
                raise ConfigError(
                    f"max_tokens: {folder.max_tokens} leaves no room for text beside the {taken} special tokens and "
                    f"tokens of the prompt of a {role}",
                    field="max_tokens",
                )

    def tokenize(self, texts: Sequence[str], role: str) -> TokenizedTexts:
        """`role` is "query" or "passage"."""
        prompt = self._prompts[role]
        encodings = self._raw.encode_batch_fast([prompt + text for text in texts])
        return TokenizedTexts(
            ids=[encoding.ids for encoding in encodings],
            truncated=[bool(encoding.overflowing) for encoding in encodings],
        )


def _unigram_scores(raw: RawTokenizer) -> dict[str, str]:
    """What decides between the pieces of a Unigram model, where others have merges."""
    model = json.loads(raw.to_str())["model"]
    if model["type"] != "Unigram":
        return {}
    return {"scores": hashlib.sha256(canonical_json(model["vocab"]).encode()).hexdigest()}
