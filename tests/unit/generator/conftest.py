"""Lets the generator's tests, here and in tests/integration, share their fakes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
