"""Formats of questions that a passage answers.

- `factbook`: questions about countries in two editions, without one field. `part` divides by the country's name.
- `pairs`: any rows with a question and an answer; the options name the fields, dots lead into nested ones
  ("answers.text.0"). `input` is a text that belongs to the question, `passage` a passage of its own, where not blank.
- `squad`: SQuAD's JSON; the paragraph is the passage, questions without an answer are left out. `part` divides by the
  article's title.
- `glossary`: terms and definitions. Option `question` is the question about a "{term}"; with `sections` (rows with
  id, title and text) the passage is the section's line with the definition between the lines beside it.
- `nvidia`: the question files of NVIDIA's RETRO tuning: the gold passage is the first, then those of `ctxs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError
from openbook_trainer.parts import LEFT_OUT, PARTS, PEOPLE, is_of_part
from openbook_trainer.rows import objects_of, optional_text, read_rows, text_of, texts_of
from openbook_trainer.sft.readers.rows import Example, Reader, existing, join
from openbook_trainer.squad import read_paragraphs


def _factbook(file: Path, options: Mapping[str, str]) -> Iterator[Example]:
    edition, kind = options["edition"], options["kind"]
    for place, row in read_rows(file):
        field, aliases = text_of(row, "field", place), f"{edition}_aliases"
        if field == LEFT_OUT or not is_of_part(text_of(row, "country", place), options["part"]):
            continue
        if kind == "all" or (field in PEOPLE) == (kind == "people"):
            answer = text_of(row, f"{edition}_answer", place)
            others = texts_of(row, aliases, place) if row.get(aliases) is not None else ()
            yield Example(text_of(row, "question", place), answer, tuple(others))


def _pairs(file: Path, options: Mapping[str, str]) -> Iterator[Example]:
    for place, row in read_rows(file):
        added = optional_text(row, options["input"], place) if options["input"] else ""
        passage = optional_text(row, options["passage"], place) if options["passage"] else ""
        question = join(text_of(row, options["question"], place), added)
        yield Example(question, text_of(row, options["answer"], place), passages=(passage,) if passage else None)


def _squad(file: Path, options: Mapping[str, str]) -> Iterator[Example]:
    for paragraph in read_paragraphs(file, options["part"]):
        for asked in paragraph.asked:
            if asked.answers:
                yield Example(asked.question, asked.answers[0], asked.answers, (paragraph.text.strip(),))


def _glossary(file: Path, options: Mapping[str, str]) -> Iterator[Example]:
    sections: dict[str, tuple[str, list[str]]] = {}
    if options["sections"]:
        for place, row in read_rows(existing(options["sections"])):
            lines = [line.strip() for line in text_of(row, "text", place).split("\n") if line.strip()]
            sections[text_of(row, "id", place)] = (text_of(row, "title", place), lines)
    for place, row in read_rows(file):
        term, definition = text_of(row, "term", place), text_of(row, "definition", place)
        passages = None
        if sections:
            document = text_of(row, "doc", place)
            title, lines = sections.get(document, ("", []))
            if f"{term}: {definition}" not in lines:
                raise InputError(
                    f"{place}: no line '{term}: {definition}' in the text of {document!r} in {options['sections']}; "
                    "give the sections that the glossary was made from, or none",
                    field="options.sections",
                )
            number = lines.index(f"{term}: {definition}")
            passages = (f"{title}: " + "\n".join(lines[max(0, number - 1) : number + 2]),)
        yield Example(options["question"].replace("{term}", term), definition, passages=passages)


def _nvidia(file: Path, _: Mapping[str, str]) -> Iterator[Example]:
    for place, row in read_rows(file):
        question = text_of(row, "question", place)
        if row.get("qa_type") == "multi_choice_qa" and row.get("multichoice_options") is not None:
            for letter, choice in zip("ABCDEFGHIJ", texts_of(row, "multichoice_options", place), strict=False):
                question += f"\n({letter}) {choice}"
        answers = _nvidia_answers(row, place)
        passages = [_with_title(row[name], place) for name in ("sub-paragraphs", "sub_paragraph") if row.get(name)]
        for context in objects_of(row, "ctxs", place) if row.get("ctxs") is not None else ():
            passages.append(_with_title([optional_text(context, n, place) for n in ("title", "text")], place))
        yield Example(question, answers[0], answers, tuple(dict.fromkeys(passages)) or None)


def _nvidia_answers(row: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Those of the first field that has any: text or a number, a list of these, or of objects with a text."""
    for name in ("answers", "answer", "longform_answer"):
        given = row.get(name)
        values = [each.get("text") if isinstance(each, dict) else each for each in _as_list(given)]
        if wrong := [value for value in values if not isinstance(value, str | int | float | None)]:
            raise InputError(f"{place}: field {name!r} has {wrong[0]!r}, expected text or a number", field="data")
        texts = tuple(dict.fromkeys(str(value).strip() for value in values if value is not None and str(value).strip()))
        if texts:
            return texts
    raise InputError(f"{place}: has no text in field 'answers' or 'answer'; mend or leave out the row", field="data")


def _with_title(passage: Any, place: str) -> str:
    """`title: text` of a text or of [title, text]."""
    title, text = passage if isinstance(passage, list) and len(passage) == 2 else ("", passage)
    if not isinstance(title, str) or not isinstance(text, str) or not text.strip():
        raise InputError(f"{place}: a passage is {passage!r}, expected a text or [title, text]", field="data")
    return f"{title}: {text.strip()}" if title else text.strip()


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


READERS = {
    "factbook": Reader(
        _factbook, {"edition": ("old", "new"), "part": ("train", "test", "all"), "kind": ("all", "people", "other")}
    ),
    "pairs": Reader(_pairs, {"question": "question", "answer": "answer", "input": "", "passage": ""}),
    "squad": Reader(_squad, {"part": PARTS}),
    "glossary": Reader(_glossary, {"question": 'What does "{term}" mean?', "sections": ""}),
    "nvidia": Reader(_nvidia, {}),
}
