"""Makes `security_files` importable, and certificates and tokens for the tests beside it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from security_files import Files, make_files


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return make_files(tmp_path / "files")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CA", "CERTIFICATE", "KEY", "SERVER_NAME"):
        monkeypatch.delenv(f"OPENBOOK_TLS_{name}", raising=False)
    for name in ("TOKEN", "TOKEN_FILE", "PLAINTEXT_TOKEN", "SERVER_TOKENS"):
        monkeypatch.delenv(f"OPENBOOK_{name}", raising=False)
