"""Errors as HTTP replies."""

from __future__ import annotations

import pytest

from openbook_core.errors import OverloadedError
from openbook_core.http import error_response


@pytest.mark.parametrize(("delay_s", "header"), [(0.2, "1"), (1.0, "1"), (1.4, "2"), (30.0, "30")])
def test_nobody_is_told_to_come_back_before_there_is_room(delay_s: float, header: str) -> None:
    assert error_response(OverloadedError("full", retry_after_s=delay_s)).headers["retry-after"] == header
