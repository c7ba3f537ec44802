"""`openbook db build` as a user meets it: other field names, Ctrl-C in the middle, the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from openbook_database.reader import DocumentReader, FieldNames, Source
from openbook_database.snapshot import Snapshot

EDITION = Path(__file__).parents[2] / "examples" / "factbook" / "2015-11-18.jsonl.zst"


def test_other_fields_an_interrupt_and_the_rest(tmp_path: Path) -> None:
    reader = DocumentReader(Source(path=EDITION), FieldNames(), skip_bad_lines=False, known=set())
    rows = [
        {"key": each.external_id, "body": each.text, "heading": each.title}
        for each, _ in zip(reader.read(lambda document: document), range(4), strict=False)
    ]
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = ["--text-field", "body", "--id-field", "key", "--title-field", "heading"]
    command = [sys.executable, "-m", "openbook_cli", "db", "build", "--name", "small", "--input", str(documents)]
    command += ["--out", str(tmp_path / "book"), *fields, "--dtype", "float32", "--json", str(tmp_path / "build.json")]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}

    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert first.stderr is not None
    seen = next((line for line in first.stderr if line.startswith("embed")), None)
    assert seen is not None
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130, said
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    assert not (tmp_path / "book").exists()

    again = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert again.returncode == 0, again.stderr
    assert "went on with a build that was interrupted" in again.stderr
    assert "4 documents" in again.stdout
    assert "embedded in float32" in again.stdout
    written = json.loads((tmp_path / "build.json").read_text())
    assert (written["documents"], written["resumed"], written["dtype"]) == (4, True, "float32")
    assert set(written["seconds"]) == {"chunk", "embed", "add", "finish"}
    snapshot = Snapshot.open(tmp_path / "book")
    assert {snapshot.documents.record(number).title for number in range(4)} == {row["heading"] for row in rows}

    documents.write_text("".join(json.dumps(row) + "\n" for row in [rows[0], {**rows[1], "body": "Words."}, rows[2]]))
    later = [str(tmp_path / "later") if argument == str(tmp_path / "book") else argument for argument in command]
    later[later.index("--dtype") : later.index("--dtype") + 2] = ["--base", str(tmp_path / "book")]
    third = subprocess.run(later, capture_output=True, text=True, timeout=180, env=environment)
    assert third.returncode == 0, third.stderr
    assert "3 documents" in third.stdout
    assert "embedded in float32" in third.stdout
    written = json.loads((tmp_path / "build.json").read_text())
    assert written["shared"] == {"documents": 2, "chunks": written["chunks"] - 1, "shards": 0}

    unnamed = [argument for argument in command if argument not in ("--id-field", "key")]
    unnamed[unnamed.index(str(tmp_path / "book"))] = str(tmp_path / "other")
    wrong = subprocess.run(unnamed, capture_output=True, text=True, timeout=60, env=environment)
    assert wrong.returncode == 2
    assert "--id-field" in wrong.stderr
