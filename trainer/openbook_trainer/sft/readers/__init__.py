"""Readers of question and answer files by format; see `questions`, `instructions` and `conversations`.

All take JSON Lines or one JSON list, plain or packed (.gz, .zst), where their format is not another one.
"""

from openbook_trainer.sft.readers import conversations, instructions, questions
from openbook_trainer.sft.readers.questions import LEFT_OUT, PEOPLE, is_training_country
from openbook_trainer.sft.readers.rows import Example, Reader

READERS: dict[str, Reader] = questions.READERS | instructions.READERS | conversations.READERS

__all__ = ["LEFT_OUT", "PEOPLE", "READERS", "Example", "Reader", "is_training_country"]
