"""The language model's tokenizer: text to token ids and back, the same from a hub folder and from a GGUF file.

Text is encoded with special tokens off: a document that contains a chat marker stays text. The fingerprint is
canonical (vocabulary, merges, and what the rules do to probe texts), so two files of one tokenizer compare equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from openbook_core.errors import InputError
from openbook_core.fingerprint import Fingerprint, canonical_json
from openbook_core.weights import resolve_model

# What each rule of a byte-pair tokenizer could change: digits, runs of blanks, contractions, cases, scripts, markers.
_PROBES = (
    "In 2015 it's 12,345.6  7   8 naïve\n\n## Head of government\n\tx = y+1;",
    "don't DON'T we'll  trailing  \n \n  leading",
    "Côte d'Ivoire, São Tomé, Ζεύς, Россия, 東京, العربية, 한국, 👩‍👩‍👧",
    "<|im_start|>user <|endoftext|> <s> </s> [CLS]",
    "aaaaaaaaaaaaaaaa\r\n\x00\u00a0\u2028end",
)
_CONTROL, _USER_DEFINED = 3, 4  # token types of the GGUF format


class Tokenizer:
    """Wraps a `tokenizers.Tokenizer` with its chat template and special token ids."""

    def __init__(
        self,
        raw: RawTokenizer,
        *,
        chat_template: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
    ) -> None:
        self._raw = raw
        self._raw.no_padding()
        self._raw.no_truncation()
        self._raw.encode_special_tokens = True  # that is: as text
        self.chat_template = chat_template
        self.bos_token, self.eos_token, self.pad_token = bos_token, eos_token, pad_token

    @classmethod
    def load(cls, name_or_path: str | Path) -> Tokenizer:
        """From a folder with tokenizer.json, a .gguf file, or a model name (see `openbook_core.weights`)."""
        path = resolve_model(str(name_or_path))
        return _from_gguf(path) if path.suffix == ".gguf" else _from_folder(path)

    def encode(self, text: str, *, special: bool = False) -> NDArray[np.uint32]:
        """Token ids [n] of `text`; with `special`, markers such as <|im_start|> become their own tokens."""
        raw = self._with_markers if special else self._raw
        return np.asarray(raw.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Token ids of each text, as from `encode`; on all cores."""
        encodings = self._raw.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Token ids [n] and, for each, its first and last + 1 character [n, 2]."""
        encoding = self._raw.encode(text, add_special_tokens=False)
        return (
            np.asarray(encoding.ids, dtype=np.uint32),
            np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2),
        )

    def decode(self, ids: Sequence[int] | NDArray[Any], *, skip_special: bool = False) -> str:
        """Text of token ids; bytes that are no whole character become U+FFFD."""
        return self._raw.decode([int(token) for token in ids], skip_special_tokens=skip_special)

    @cached_property
    def _with_markers(self) -> RawTokenizer:
        """A copy that reads markers; the switch is the tokenizer's own state, so threads must not share one."""
        return RawTokenizer.from_str(self._raw.to_str())

    def token_id(self, token: str | None) -> int | None:
        return None if token is None else self._raw.token_to_id(token)

    @property
    def eos_id(self) -> int | None:
        return self.token_id(self.eos_token)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id: a vocabulary may have gaps."""
        return 1 + max(self._raw.get_vocab(with_added_tokens=True).values())

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Canonical vocabulary, merges and rules; the files' layout does not matter."""
        merges = json.loads(self._raw.to_str())["model"].get("merges", [])
        pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in merges]
        behaviour = [self.encode(probe).tolist() for probe in _PROBES]
        behaviour += [self.encode(probe, special=True).tolist() for probe in _PROBES]
        return Fingerprint(
            {
                "vocab_size": self.vocab_size,
                "vocabulary": _digest(self._raw.get_vocab(with_added_tokens=True)),
                "merges": _digest(pairs),
                "rules": _digest(behaviour),
            }
        )

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; equal tokenizers give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._raw.to_str(), encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": self.chat_template,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
        }
        text = json.dumps({key: value for key, value in config.items() if value is not None}, indent=1, sort_keys=True)
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _from_folder(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no tokenizer.json", field="tokenizer")
    try:
        raw = RawTokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception for a file it cannot read
        raise InputError(f"{path} is not a tokenizer: {error}", field="tokenizer") from error
    config: dict[str, Any] = {}
    config_path = folder / "tokenizer_config.json"
    if config_path.is_file():
        config = json.loads(config_path.read_text(encoding="utf-8"))
    template = config.get("chat_template")
    template_path = folder / "chat_template.jinja"
    if template_path.is_file():
        template = template_path.read_text(encoding="utf-8")

    def token(name: str) -> str | None:
        value = config.get(name)
        return value.get("content") if isinstance(value, dict) else value

    return Tokenizer(
        raw,
        chat_template=template if isinstance(template, str) else None,
        bos_token=token("bos_token"),
        eos_token=token("eos_token"),
        pad_token=token("pad_token"),
    )


def _from_gguf(path: Path) -> Tokenizer:
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields
    except (ValueError, OSError, IndexError) as error:
        raise InputError(f"{path} is not a GGUF file: {error}", field="tokenizer") from error

    def value(key: str, default: Any = None) -> Any:
        return fields[key].contents() if key in fields else default

    kind, rules = value("tokenizer.ggml.model"), value("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or rules not in ("smollm", "gpt-2", "default"):
        raise InputError(
            f"{path}: tokenizer {kind!r} with rules {rules!r} is not read from GGUF; give a folder with tokenizer.json",
            field="tokenizer",
        )
    tokens: list[str] = value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in value("tokenizer.ggml.merges")]
    raw = RawTokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raw.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if rules == "smollm"
        else byte_level
    )
    raw.decoder = decoders.ByteLevel()
    types = value("tokenizer.ggml.token_type", [])
    raw.add_special_tokens(
        [AddedToken(tokens[i], special=True, normalized=False) for i, t in enumerate(types) if t == _CONTROL]
    )
    raw.add_tokens(
        [AddedToken(tokens[i], special=False, normalized=False) for i, t in enumerate(types) if t == _USER_DEFINED]
    )

    def special(name: str) -> str | None:
        number = value(f"tokenizer.ggml.{name}_token_id")
        return None if number is None else tokens[number]

    return Tokenizer(
        raw,
        chat_template=value("tokenizer.chat_template"),
        bos_token=special("bos"),
        eos_token=special("eos"),
        pad_token=special("padding"),
    )
