"""What decontamination leaves of an evaluation's texts in a corpus that holds them.

    python benchmarks/decontamination.py [--limit DOCUMENTS] [--json FILE]

Chunks `wikipedia/paragraphs` (OPENBOOK_DATA) against SQuAD's dev set as `openbook db build --decontaminate` does, with an
encoder that costs nothing, and looks for each of SQuAD's contexts in every document that is left: all of its words in a row, by
string search, which is no part of the rule itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measure import environment, figure_lines, run_benchmark

CORPUS, EVALUATION = Path("wikipedia", "paragraphs.jsonl.zst"), Path("squad", "dev-v1.1.json.zst")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--limit", type=int, metavar="DOCUMENTS", help="only the first ones that are kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args(arguments)
    data = Path(os.environ.get("OPENBOOK_DATA", "data"))
    return run_benchmark(
        lambda work: run(data / CORPUS, data / EVALUATION, options.limit, work),
        figure_lines,
        limit_s=3600,
        json_file=options.json,
        passed=lambda result: not result["contexts_left"],
    )


def run(corpus: Path, evaluation: Path, limit: int | None, work: Path) -> dict[str, Any]:
    """{figures, raw}."""
    from openbook_core.tokenizer import Tokenizer
    from openbook_core.weights import DEFAULT_MODEL
    from openbook_database.build.run import build_snapshot
    from openbook_database.build.settings import BuildSettings
    from openbook_database.cleaning.config import CleaningConfig
    from openbook_database.manifest import Manifest
    from openbook_database.reader import FieldNames
    from openbook_database.streams import read_lines
    from openbook_database.testing import HashEncoder

    circumstances = environment()
    settings = BuildSettings(
        fields=FieldNames(id=""), cleaning=CleaningConfig(evaluation=(evaluation,)), limit_documents=limit
    )
    tokenizer, out = Tokenizer.load(DEFAULT_MODEL), work / "book"
    built = build_snapshot([corpus], out, database="b", tokenizer=tokenizer, encoder=HashEncoder(8), settings=settings)
    removed = [json.loads(line) for line in (work / "book.report.jsonl").read_text(encoding="utf-8").splitlines()]
    gone = {record["id"] for record in removed}
    rows = [json.loads(line) for line in read_lines(corpus) if line.strip()][: built.documents + len(removed)]
    texts = {f"{corpus.name}:{number}": _plain(row["text"]) for number, row in enumerate(rows, 1)}
    assert gone <= set(texts)
    contexts = list(_contexts(json.loads(b"\n".join(read_lines(evaluation)))))
    left = "\n".join(text for name, text in texts.items() if name not in gone)
    before = "\n".join(texts.values())
    manifest = Manifest.read(out)
    return {
        "documents": len(texts),
        "removed": len(removed),
        "removed_by_rule": dict(Counter(record["rule"] for record in removed)),
        "contexts": len(contexts),
        "contexts_in_the_corpus": sum(context in before for context in contexts),
        "contexts_left": sum(context in left for context in contexts),
        "raw": {
            "command": " ".join(["python benchmarks/decontamination.py", *sys.argv[1:]]),
            **circumstances,
            "settings": settings.cleaning.model_dump(mode="json", exclude={"evaluation"}),
            "corpus": manifest.recipe["sources"]["0"],
            "evaluation": manifest.recipe["evaluation"]["0"],
            "tokenizer": DEFAULT_MODEL,
        },
    }


def _contexts(squad: dict[str, Any]) -> Iterator[str]:
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            yield _plain(paragraph["context"])


def _plain(text: str) -> str:
    """The words, with one space between."""
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
