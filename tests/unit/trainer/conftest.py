"""Makes `trainer_fakes` importable for the tests beside it, and puts a fake retriever where runs look for one."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from trainer_fakes import FakeRetriever


@pytest.fixture
def retriever(monkeypatch: pytest.MonkeyPatch) -> FakeRetriever:
    from openbook_trainer import app, neighbours

    fake = FakeRetriever()
    monkeypatch.setattr(app, "RetrieverClient", lambda address: fake)
    monkeypatch.setattr(neighbours, "RetrieverClient", lambda address: fake)
    return fake
