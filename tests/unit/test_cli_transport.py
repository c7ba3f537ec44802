"""`openbook db publish|pull` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core.errors import NotFoundError
from openbook_database.testing import build_tiny_snapshot


def test_there_and_back_with_figures(tmp_path: Path) -> None:
    build_tiny_snapshot(tmp_path / "book", shards=2)
    url, figures = (tmp_path / "store").as_uri(), tmp_path / "figures.json"
    run = CliRunner().invoke
    sent = run(app, ["db", "publish", str(tmp_path / "book"), url, "--json", str(figures)])
    assert sent.exit_code == 0, sent.output
    assert f"is published at {url}" in sent.stdout
    assert json.loads(figures.read_text())["sent_bytes"] > 0
    got = run(app, ["db", "pull", url, str(tmp_path / "part"), "--shard", "1", "--threads", "2"])
    assert got.exit_code == 0, got.output
    assert not (tmp_path / "part" / "shard-00000").exists()
    arguments = ["db", "pull", url, str(tmp_path / "all"), "--reuse", str(tmp_path / "part"), "--json", str(figures)]
    assert run(app, arguments).exit_code == 0
    assert json.loads(figures.read_text())["linked_bytes"] > 0
    assert "was there already" in run(app, arguments).stdout
    missing = run(app, ["db", "pull", f"{url}-missing", str(tmp_path / "none")])
    assert isinstance(missing.exception, NotFoundError)
