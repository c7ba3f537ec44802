"""Formats of instructions that bring with them what they need: nothing is retrieved for them.

- `prompts`: rows with `prompt` and `completion`, as in T0 and self-instruct; what marks their ends is removed. Options
  `datasets` and `licences` keep the rows with these values (joined by "|") of `dataset` and `license`.
- `flan`: tab-separated question, answer and chain of thought, with line breaks as "\\n".
- `gsm8k`: `question` and `answer`; the calculator's marks are removed.
  Option `steps` of both: "with" answers by the chain of thought and the result as the last line, "without" by the result.
- `self_instruct`: an `instruction` with `instances` of input, output and constraints, also of Unnatural Instructions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from openbook_core.errors import InputError
from openbook_database.streams import read_lines
from openbook_trainer.rows import filled, list_of, optional_text, read_rows, text_of
from openbook_trainer.sft.readers.rows import Example, Reader, join

_PROMPT_END, _END = "\n\nOutput:", "<|endoftext|>"
_CALCULATION = re.compile(r"<<[^<>]*>>")
_RESULT = "\n#### "


def _prompts(file: Path, options: Mapping[str, str]) -> Iterator[Example]:
    kept = {
        field: set(options[name].split("|"))
        for name, field in (("datasets", "dataset"), ("licences", "license"))
        if options[name]
    }
    for place, row in read_rows(file):
        if all(text_of(row, field, place) in values for field, values in kept.items()):
            prompt = text_of(row, "prompt", place).removesuffix(_PROMPT_END)
            answer = text_of(row, "completion", place).removesuffix(_END)
            yield Example(filled(prompt, "prompt", place), filled(answer, "completion", place), passages=())


def _flan(file: Path, options: Mapping[str, str]) -> Iterator[Example]:
    names = ("question", "answer", "chain of thought")
    for number, line in enumerate(read_lines(file), start=1):
        place = f"{file}, line {number}"
        try:
            columns = line.decode().replace("\\n", "\n").split("\t")
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: is not UTF-8 ({error})", field="data") from error
        if len(columns) != len(names):
            raise InputError(f"{place}: has {len(columns)} columns, expected {', '.join(names)}", field="data")
        question, answer, chain = (filled(*column, place) for column in zip(columns, names, strict=True))
        yield Example(question, f"{chain}\n{answer}" if options["steps"] == "with" else answer, passages=())


def _gsm8k(file: Path, options: Mapping[str, str]) -> Iterator[Example]:
    for place, row in read_rows(file):
        chain, mark, result = _CALCULATION.sub("", text_of(row, "answer", place)).rpartition(_RESULT)
        if not mark:
            raise InputError(f"{place}: field 'answer' has no last line '#### RESULT'", field="data")
        answer = f"{chain}\n{result}" if options["steps"] == "with" else result
        yield Example(text_of(row, "question", place), answer, passages=())


def _self_instruct(file: Path, _: Mapping[str, str]) -> Iterator[Example]:
    for place, row in read_rows(file):
        instruction = text_of(row, "instruction", place)
        for number, instance in enumerate(list_of(row, "instances", place), start=1):
            at = f"{place}, instance {number}"
            constraints = optional_text(instance, "constraints", at)
            if constraints.rstrip(".").lower() == "none":
                constraints = ""
            question = optional_text(instance, "instruction_with_input", at)
            question = question or join(instruction, optional_text(instance, "input", at))
            yield Example(join(question, constraints), text_of(instance, "output", at), passages=())


READERS = {
    "prompts": Reader(_prompts, {"datasets": "", "licences": ""}),
    "flan": Reader(_flan, {"steps": ("with", "without")}),
    "gsm8k": Reader(_gsm8k, {"steps": ("with", "without")}),
    "self_instruct": Reader(_self_instruct, {}),
}
