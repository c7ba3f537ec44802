"""Readers of question and answer files by format; see `questions`, `instructions` and `conversations`.

All take JSON Lines or one JSON list, plain or packed (.gz, .zst), where their format is not another one.
"""

from openbook_trainer.sft.readers import conversations, instructions, questions
from openbook_trainer.sft.readers.rows import Example, Reader

READERS: dict[str, Reader] = questions.READERS | instructions.READERS | conversations.READERS

__all__ = ["READERS", "Example", "Reader"]
