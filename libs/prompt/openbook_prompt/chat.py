"""From messages to token ids: the model's chat template in a sandbox, contents always as plain text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from openbook_core.errors import ArgumentError, InputError
from openbook_core.tokenizer import Tokenizer
from openbook_prompt.recipe import Message

_MARK = re.compile("\ue000([0-9]+)\ue001")
_END_MARKERS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>")
_MIN_PIECE = 16  # tokens; a shorter rest of a passage says too little to be worth its place


@dataclass
class Encoded:
    """Token ids of a prompt; for each text shown, by its number, the text and its [start, end) in characters and tokens."""

    ids: list[int] = field(default_factory=list)
    characters: int = 0
    spans: dict[int, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)


class ChatFormat:
    """Renders messages for one tokenizer. Without a chat template contents are joined by newlines, then "Answer:"."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._template = None
        if tokenizer.chat_template:
            environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
            environment.globals["raise_exception"] = _raise_exception
            try:
                self._template = environment.from_string(tokenizer.chat_template)
            except TemplateError as error:
                raise InputError(f"the model's chat template does not parse: {error}", field="model") from error

    def encode_chat(self, messages: Sequence[Message], lead: str = "") -> Encoded:
        """The prompt of a chat with the assistant's turn opened by `lead`; markers inside contents stay text."""
        if self._template is None:
            text = "\n".join(f"\ue000{number}\ue001" for number in range(len(messages))) + "\nAnswer:"
        else:
            text = self._render([message.role for message in messages])
        encoded = Encoded()
        pieces = _MARK.split(text)
        for place, piece in enumerate(pieces):
            if place % 2:
                self._append_content(encoded, messages[int(piece)])
            elif piece:
                encoded.ids += self.tokenizer.encode(piece, special=True).tolist()
                encoded.characters += len(piece)
        self._append_content(encoded, Message("assistant", lead))
        return encoded

    def encode_text(self, message: Message) -> Encoded:
        """The prompt of a plain completion."""
        encoded = Encoded()
        self._append_content(encoded, message)
        return encoded

    def _render(self, roles: Sequence[str]) -> str:
        marked = [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)]
        assert self._template is not None
        try:
            return self._template.render(
                messages=marked,
                add_generation_prompt=True,
                bos_token=self.tokenizer.bos_token or "",
                eos_token=self.tokenizer.eos_token or "",
            )
        except TemplateError as error:
            raise ArgumentError(
                f"the model's chat template refuses these messages: {error}; check their roles and order",
                field="messages",
            ) from error

    def _append_content(self, encoded: Encoded, message: Message) -> None:
        ids, offsets = self.tokenizer.encode_with_offsets(message.content)
        for rank, start, end in message.passages:
            inside = [i for i, (first, last) in enumerate(offsets.tolist()) if last > start and first < end]
            tokens = (len(encoded.ids) + inside[0], len(encoded.ids) + inside[-1] + 1) if inside else (0, 0)
            encoded.texts[rank] = message.content[start:end]
            encoded.spans[rank] = ((encoded.characters + start, encoded.characters + end), tokens)
        encoded.ids += ids.tolist()
        encoded.characters += len(message.content)


def require_fit(bare: Encoded, limit: int, name: str) -> None:
    """Raise ArgumentError for the request field `name` if a prompt without passages is longer than `limit` tokens."""
    if len(bare.ids) > limit:
        raise ArgumentError(
            f"the prompt has {len(bare.ids)} tokens and at most {limit} fit beside the reply; shorten it or ask for "
            "fewer max_tokens",
            field=name,
        )


def fit(
    tokenizer: Tokenizer,
    passages: Sequence[str],
    limit: int,
    encode: Callable[[Sequence[str]], Encoded],
    name: str,
) -> Encoded:
    """`encode` of as much of the `passages` (best first) as leaves the prompt at most `limit` tokens long.

    The worst passages go first, the last one kept is cut; the question is never touched. Errors as in `require_fit`.
    """
    bare = encode([])
    require_fit(bare, limit, name)
    encoded, room = encode(passages), limit - len(bare.ids)
    while len(encoded.ids) > limit:
        kept = _cut(tokenizer, passages, room)
        encoded = encode(kept) if kept else bare
        room -= max(1, len(encoded.ids) - limit)
    return encoded


def _cut(tokenizer: Tokenizer, passages: Sequence[str], room: int) -> list[str]:
    kept: list[str] = []
    for passage in passages:
        offsets = tokenizer.encode_with_offsets(passage)[1]
        if len(offsets) >= room:
            if room >= _MIN_PIECE:
                kept.append(passage[: int(offsets[room - 1, 0])].rstrip())
            break
        kept.append(passage)
        room -= len(offsets) + 1
    return kept


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The end token, and the usual end markers that the vocabulary has."""
    found = [tokenizer.eos_id, *(tokenizer.token_id(marker) for marker in _END_MARKERS)]
    return frozenset(token for token in found if token is not None)


def _raise_exception(message: str) -> Any:
    raise TemplateError(message)
