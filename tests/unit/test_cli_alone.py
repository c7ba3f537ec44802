"""One run to a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from openbook_cli.alone import alone_in
from openbook_core.errors import ConflictError


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with alone_in(out, "run", "--out"):
        second = alone_in(out, "run", "--out")
        with pytest.raises(ConflictError, match=f"another run works in {out}; .*give another --out"):
            second.__enter__()
    with alone_in(out, "run", "--out"):
        pass
