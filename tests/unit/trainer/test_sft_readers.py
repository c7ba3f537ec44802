"""Readers of instruction data, on rows as they are published; bad rows by file, line and field.

Rows taken over: GSM8K (MIT), FLAN's chains of thought, self-instruct's seeds (Apache-2.0), T0's common_gen (MIT),
OpenStax's glossary (CC-BY-4.0). The others are written after the published schema.
"""

import json
from pathlib import Path

import pytest
from zstandard import ZstdCompressor

from openbook_core.errors import ConfigError, InputError, NotFoundError
from openbook_trainer.parts import is_of_part
from openbook_trainer.sft.readers import READERS, Example

FACT = '{"country": "Chad", "field": "capital", "question": "a?", "old_answer": "b"'


@pytest.fixture
def read(tmp_path):
    """read(format, rows or text, **options) -> examples; the file is rows.jsonl."""

    def read_file(name, content, **options):
        path = tmp_path / "rows.jsonl"
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(text, encoding="utf-8")
        return READERS[name](str(path), options)

    return read_file


def test_pairs_find_their_fields_and_passage(read):
    asked = {"title": "Why?", "selftext": "", "answers": {"text": ["Because.", "No."], "score": [9, 2]}}
    (eli5,) = read("pairs", [asked], question="title", input="selftext", answer="answers.text.0")
    assert eli5 == Example("Why?", "Because.")
    dolly = [
        {"instruction": "Where?", "context": "It is in Chad.", "response": "Chad", "category": "closed_qa"},
        {"instruction": "When?", "context": "", "response": "Now", "category": "open_qa"},
    ]
    options = {"question": "instruction", "answer": "response", "passage": "context"}
    assert read("pairs", dolly, **options) == [
        Example("Where?", "Chad", passages=("It is in Chad.",)),
        Example("When?", "Now"),
    ]
    rows = json.dumps([{"instruction": "Translate.", "input": "chat", "output": "cat"}], indent=1)
    options = {"question": "instruction", "input": "input", "answer": "output"}
    assert read("pairs", rows, **options) == [Example("Translate.\n\nchat", "cat")]


@pytest.mark.parametrize(
    ("format_", "rows", "message"),
    [
        (
            "pairs",
            '{"question": "a?", "answer": "b"}\n{"question": "a?", "answer": " "}\n',
            "line 2: has no text .*'answer'",
        ),
        ("pairs", '\n{"question": "a?", "answer": 3}\n', "line 2: field 'answer' is a int, expected text"),
        ("pairs", "{]\n", "line 1: is not JSON"),
        ("pairs", "[1]", "row 1: holds a JSON int, expected an object"),
        ("prompts", '{"prompt": "a", "completion": "<|endoftext|>"}', "line 1: has no text in field 'completion'"),
        ("flan", "a\tb\n", "line 1: has 2 columns, expected question, answer, chain of thought"),
        ("flan", "a\tb\tc\na\t \tc\n", "line 2: has no text in field 'answer'"),
        ("gsm8k", '{"question": "a", "answer": "72"}', "line 1: field 'answer' has no last line '#### RESULT'"),
        ("self_instruct", '{"instruction": "a"}', "line 1: field 'instances' is missing or null, expected a list"),
        (
            "self_instruct",
            '{"instruction": "a", "instances": [{"output": "b"}, {"output": ""}]}',
            "line 1, instance 2: has no text in field 'output'",
        ),
        ("glossary", '{"term": "a"}', "line 1: has no field 'definition'; its fields are term"),
        ("nvidia", '{"question": "a", "answers": [" "]}', "line 1: has no text in field 'answers' or 'answer'"),
        ("nvidia", '{"question": "a", "answer": "b", "ctxs": [{"title": "c"}]}', "line 1: a passage is"),
        ("squad", "[]", "field 'data' is missing or null, expected a list"),
        ("squad", '{"data": [{"title": "a"}]}', "a: field 'paragraphs' is missing or null, expected a list"),
        (
            "squad",
            '{"data": [{"title": "a", "paragraphs": [{"context": "b", "qas": '
            '[{"id": "c", "question": "c?", "answers": [{}]}]}]}]}',
            "a, paragraph 0, question c: has no field 'text'",
        ),
        (
            "oasst",
            '{"prompt": {"lang": "en", "role": "assistant", "text": "a"}}',
            "message 1: field 'role' is 'assistant'",
        ),
        (
            "oasst",
            '{"prompt": {"lang": "en", "role": "prompter", "text": ""}}',
            "message 1: has no text in field 'text'",
        ),
        *(
            (
                "oasst",
                f'{{"prompt": {{"lang": "en", "role": "prompter", "text": "a", "replies": {replies}}}}}',
                f"message 1.*{text}",
            )
            for replies, text in (
                ('["x"]', "replies 1: holds a JSON str"),
                ("3", "'replies' is a int, expected a list"),
                ('[{"rank": "1"}, {"rank": 2}]', "'rank' of a reply is '1'"),
            )
        ),
        ("soda", '{"narrative": "a", "dialogue": ["b", "c"], "speakers": [["d"], "e"]}', "'speakers.0' is a list"),
        ("factbook", f'{FACT}, "old_aliases": "Ann"}}', "line 1: field 'old_aliases' is a str, expected a list"),
        ("factbook", f'{FACT}, "old_aliases": [3]}}', r"line 1: field 'old_aliases\.0' is a int, expected text"),
        (
            "nvidia",
            '{"question": "a", "answer": [["b"]]}',
            "line 1: field 'answer' has ..b.., expected text or a number",
        ),
        ("nvidia", '{"question": "a", "answer": "b", "ctxs": 3}', "line 1: field 'ctxs' is a int, expected a list"),
        (
            "nvidia",
            '{"question": "a", "answer": "b", "qa_type": "multi_choice_qa", "multichoice_options": 3}',
            "line 1: field 'multichoice_options' is a int, expected a list",
        ),
        ("soda", '{"narrative": "a", "dialogue": ["b"], "speakers": ["c"]}', "have 1 and 1 entries of 1 speakers"),
    ],
)
def test_a_bad_row_is_named(read, format_, rows, message):
    with pytest.raises(InputError, match=rf"rows\.jsonl.*{message}"):
        read(format_, rows)


def test_bad_options_and_files_are_named(read, tmp_path):
    with pytest.raises(ConfigError, match="unknown option 'questions'; this format has question, answer"):
        read("pairs", "", questions="x")
    with pytest.raises(ConfigError, match="option part is 'dev'; it may be all, train, test"):
        read("squad", "", part="dev")
    with pytest.raises(NotFoundError, match="is missing"):
        READERS["pairs"](str(tmp_path / "none"), {})
    with pytest.raises(InputError, match="no example that its options let through"):
        read("prompts", [{"prompt": "a", "completion": "b", "dataset": "c"}], datasets="d")


def test_the_factbook_reader_keeps_the_test_countries_out(read):
    rows = [
        {"country": name, "field": "capital", "question": f"{name}?", "old_answer": "x", "new_answer": "y"}
        for name in ("Canada", "Chad", "Chile", "China", "Cuba", "Cyprus", "Congo", "Colombia")
    ]
    parts = {part: {each.question for each in read("factbook", rows, part=part)} for part in ("train", "test", "all")}
    assert parts["train"] | parts["test"] == parts["all"] and not parts["train"] & parts["test"]
    assert parts["train"] == {f"{row['country']}?" for row in rows if is_of_part(row["country"], "train")}
    assert {each.answer for each in read("factbook", rows, edition="new")} == {"y"}
    assert read("factbook", f'{FACT}, "old_aliases": null}}') == [Example("a?", "b")]


def test_squad_brings_its_paragraph_and_is_divided_by_article(read, tmp_path):
    def article(title):
        asked = [
            {"id": "1", "question": f"{title}?", "answers": [{"text": "Ada"}, {"text": "Ada"}]},
            {"id": "2", "question": "x", "answers": []},
        ]
        return {"title": title, "paragraphs": [{"context": "It was Ada.", "qas": asked}]}

    titles = [f"Article {number}" for number in range(9)]
    whole = json.dumps({"data": [article(title) for title in titles]})
    found = read("squad", whole)
    assert found[0] == Example("Article 0?", "Ada", ("Ada",), ("It was Ada.",)) and len(found) == 9
    train, test = read("squad", whole, part="train"), read("squad", whole, part="test")
    assert train and test and sorted(train + test, key=found.index) == found
    packed = tmp_path / "squad.json.zst"
    packed.write_bytes(ZstdCompressor().compress(whole.encode()))
    assert READERS["squad"](str(packed), {}) == found


def test_a_definition_is_found_in_its_section(read, tmp_path):
    row = {
        "term": "democracy",
        "definition": "a form of government where political power rests in the hands of the people",
        "doc": "openstax/osbooks-american-government/m90378",
        "book": "American Government 4e",
    }
    lines = ["Much was said.", "common goods: goods", f"democracy: {row['definition']}", "", "power: influence", "End."]
    section = {"id": row["doc"], "title": "What is Government?", "text": "\n".join(lines)}
    sections = tmp_path / "modules.jsonl"
    sections.write_text(json.dumps(section), encoding="utf-8")
    assert read("glossary", [row]) == [Example('What does "democracy" mean?', row["definition"])]
    (found,) = read("glossary", [row], question="Define {term}.", sections=str(sections))
    assert found.question == "Define democracy."
    assert found.passages == (
        f"What is Government?: common goods: goods\ndemocracy: {row['definition']}\npower: influence",
    )
    with pytest.raises(InputError, match=r"line 1: no line 'democracy: x' in the text of 'openstax"):
        read("glossary", [row | {"definition": "x"}], sections=str(sections))


def test_nvidias_question_files(read):
    contexts = [{"title": "Chad", "text": "Its king is Ada."}, {"title": "", "text": "More."}]
    rows = [
        {"question": "Who?", "answers": ["Ada", {"text": "Queen Ada"}], "sub-paragraphs": ["Chad", "Its king is Ada."]},
        {"question": "Who?", "answer": "Ada", "sub_paragraph": "Ada rules.", "ctxs": contexts},
        {"question": "Who?", "answer": 7, "ctxs": contexts},
        {"question": "Which?", "answers": ["B"], "qa_type": "multi_choice_qa", "multichoice_options": ["Ada", "Bo"]},
    ]
    assert read("nvidia", json.dumps(rows)) == [
        Example("Who?", "Ada", ("Ada", "Queen Ada"), ("Chad: Its king is Ada.",)),
        Example("Who?", "Ada", ("Ada",), ("Ada rules.", "Chad: Its king is Ada.", "More.")),
        Example("Who?", "7", ("7",), ("Chad: Its king is Ada.", "More.")),
        Example("Which?\n(A) Ada\n(B) Bo", "B", ("B",)),
    ]


def test_prompts_lose_what_marks_their_ends(read):
    rows = [
        {
            "prompt": "Humans can easily string together abstract concepts to form a coherent sentence. \nFor example, with "
            "the concepts ski, mountain, skier, a simple sentence can be\n",
            "completion": "Skier skis down the mountain<|endoftext|>",
            "dataset": "common_gen",
            "template": "common_gen_Example_prompt",
            "license": "MIT",
        },
        {
            "prompt": "List three.\n\nOutput:",
            "completion": " 1, 2, 3",
            "dataset": "paws",
            "license": "free use (Google)",
        },
    ]
    found = read("prompts", rows)
    assert [each.answer for each in found] == ["Skier skis down the mountain", "1, 2, 3"]
    assert found[0].question.endswith("a simple sentence can be") and found[1].question == "List three."
    assert all(each.passages == () for each in found)
    assert read("prompts", rows, licences="MIT|Apache-2.0") == found[:1]
    assert read("prompts", rows, datasets="paws") == found[1:]


def test_chains_of_thought_end_with_the_result(read):
    line = (
        "What might the result of unwanted flirting be?\\nOptions:\\n- attraction\\n- being slapped\\n"
        "\tbeing slapped\tPerson can be slapped if he does unwanted flirting to someone.\n"
    )
    chain = "Person can be slapped if he does unwanted flirting to someone."
    question = "What might the result of unwanted flirting be?\nOptions:\n- attraction\n- being slapped"
    assert read("flan", line) == [Example(question, f"{chain}\nbeing slapped", passages=())]
    assert read("flan", line, steps="without") == [Example(question, "being slapped", passages=())]


def test_calculations_lose_their_marks(read):
    row = {
        "question": "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did "
        "she earn?",
        "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = "
        "$<<0.2*50=10>>10.\n#### 10",
    }
    answer = "Weng earns 12/60 = $0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = $10.\n10"
    assert read("gsm8k", [row]) == [Example(row["question"], answer, passages=())]
    assert read("gsm8k", [row], steps="without") == [Example(row["question"], "10", passages=())]


def test_instructions_have_inputs_and_constraints(read):
    seed = {
        "id": "seed_task_1",
        "instruction": "What is the relation between the given pairs?",
        "instances": [
            {
                "input": "Night : Day :: Right : Left",
                "output": "The relation between the given pairs is that they are opposites.",
            }
        ],
        "is_classification": False,
    }
    unnatural = {
        "instruction": "Name the colour.",
        "instances": [
            {
                "input": "Grass",
                "instruction_with_input": "Name the colour. Grass.",
                "constraints": "One word.",
                "output": "Green",
            },
            {"input": "Snow", "instruction_with_input": "Snow: its colour?", "constraints": "None.", "output": "White"},
        ],
    }
    assert read("self_instruct", [seed, unnatural]) == [
        Example(f"{seed['instruction']}\n\nNight : Day :: Right : Left", seed["instances"][0]["output"], passages=()),
        Example("Name the colour. Grass.\n\nOne word.", "Green", passages=()),
        Example("Snow: its colour?", "White", passages=()),
    ]


def message(role, text, rank=None, replies=(), **more):
    return {"message_id": text, "role": role, "text": text, "lang": "en", "rank": rank, "replies": list(replies)} | more


def test_message_trees_give_the_best_ranked_path(read):
    last = message("assistant", "a = 1 ```python```", 0)
    better = message("assistant", "Yes.", 0, [message("prompter", "Show it.", replies=[last])])
    gone = message("assistant", "Gone.", None, deleted=True)
    tree = {
        "message_tree_id": "1",
        "tree_state": "ready_for_export",
        "prompt": message("prompter", "Can you?", replies=[gone, message("assistant", "No.", 1), better]),
    }
    other = {
        "message_tree_id": "2",
        "prompt": message("prompter", "¿Y?", lang="es", replies=[message("assistant", "Sí.")]),
    }
    first = Example("Can you?", "Yes.", passages=())
    code = Example("Show it.", last["text"], passages=(), turns=(("user", "Can you?"), ("assistant", "Yes.")))
    spanish = Example("¿Y?", "Sí.", passages=())
    assert read("oasst", [tree, other]) == [first, code]
    assert read("oasst", [tree, other], language="all") == [first, code, spanish]
    assert read("oasst", [tree], code="without") == [first]
    assert read("oasst", [tree], code="only") == [code]


def test_a_dialogue_follows_its_narrative(read):
    row = {
        "head": "PersonX is late",
        "narrative": "Ada is late. Her friend Bo waits.",
        "dialogue": ["Sorry!", "Where were you?", "At home.", "I slept.", "Never mind."],
        "speakers": ["Ada", "Bo", "Ada", "Ada", "Bo"],
    }
    system = ("system", row["narrative"])
    assert read("soda", [row]) == [
        Example(
            "At home.\nI slept.",
            "Never mind.",
            passages=(),
            turns=(system, ("user", "Sorry!"), ("assistant", "Where were you?")),
        )
    ]
    shorter = row | {"dialogue": row["dialogue"][:3], "speakers": row["speakers"][:3]}
    assert read("soda", [shorter]) == [Example("Where were you?", "At home.", passages=(), turns=(system,))]


def test_every_reader_is_in_the_guide():
    guide = (Path(__file__).parents[3] / "docs/guides/instruction-tuning.md").read_text(encoding="utf-8")
    for name, reader in READERS.items():
        (line,) = [line for line in guide.splitlines() if line.startswith(f"| `{name}` |")]
        assert all(f"`{option}`" in line for option in reader.options), name
